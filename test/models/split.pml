/*
 * Notification over one split virtqueue, from the specification (virtio 1.3, 2.7.7, 2.7.10 and 2.7.13) and not from this
 * project's code: driver and device, each with a store buffer as x86 has it (TSO).
 *
 *   -DEVENT_IDX     used_event and avail_event; without it, the flags of both rings
 *   -DF2 -DF4 -DF5  leave out the device's barrier after used.idx, its barrier after the wish to be kicked, or its
 *                   second look
 *
 * The end that must not be reached: both asleep with requests open, which spin reports as an invalid end state.
 */

#define INDEX_COUNT 8 /* indices wrap here, as at 65536 */
#define START       6 /* so they do */
#define REQUESTS    6
#define DEPTH       2 /* requests open at a time: more traffic would heal a lost wake-up */

#define MINUS(a, b) (((a) + INDEX_COUNT - (b)) % INDEX_COUNT)
#define PLUS(a, b)  (((a) + (b)) % INDEX_COUNT)
/* True when `event` is among the entries published since the last decision. */
#define NEED_EVENT(event, new, old) (MINUS(MINUS(new, event), 1) < MINUS(new, old))

/* The words in shared memory. */
byte avail_idx = START;
byte used_idx = START;
#ifdef EVENT_IDX
byte used_event = START;
byte avail_event = START;
#else
bit no_interrupt = 0;
bit no_notify = 0;
#endif

/* Stores on their way: which word, which value. */
mtype = { AVAIL_IDX, USED_IDX, USED_EVENT, AVAIL_EVENT, NO_INTERRUPT, NO_NOTIFY };
chan driver_stores = [4] of { mtype, byte };
chan device_stores = [4] of { mtype, byte };

#define STORE(buffer, word, value) buffer ! word, value
#define FULL_BARRIER(buffer)       (empty(buffer))

/* eventfds */
bit kicked = 0;
bit signalled = 0;

/* Stores become visible in their order, at any time. */
proctype store_buffer(chan stores) {
  mtype word;
  byte value;
end:
  do
  :: atomic {
       stores ? word, value;
       if
       :: word == AVAIL_IDX -> avail_idx = value
       :: word == USED_IDX -> used_idx = value
#ifdef EVENT_IDX
       :: word == USED_EVENT -> used_event = value
       :: word == AVAIL_EVENT -> avail_event = value
#else
       :: word == NO_INTERRUPT -> no_interrupt = value
       :: word == NO_NOTIFY -> no_notify = value
#endif
       fi
     }
  od
}

proctype device() {
  byte last_avail = START;
  byte used = START;
  byte decided = START;
  byte seen;
  bit wants_signal;
  bit first = 1;
  bit armed = 0;

again:
  seen = avail_idx;
  if
  :: seen != last_avail ->
#ifndef EVENT_IDX
     if
     :: armed -> STORE(device_stores, NO_NOTIFY, 1)
     :: else
     fi;
#endif
     armed = 0;
     used = PLUS(used, MINUS(seen, last_avail));
     last_avail = seen;
     STORE(device_stores, USED_IDX, used);
#ifndef F2
     FULL_BARRIER(device_stores);
#endif
#ifdef EVENT_IDX
     wants_signal = NEED_EVENT(used_event, used, decided);
#else
     wants_signal = !no_interrupt;
#endif
     decided = used;
     if
     :: wants_signal || first ->
        /* A system call: it ends no earlier than the stores before it are visible. */
        FULL_BARRIER(device_stores);
        signalled = 1
     :: else
     fi;
     first = 0
  :: else
  fi;

  /* Is there more? If not, ask for a kick and look once more. */
  if
  :: avail_idx != last_avail -> goto again
  :: else
  fi;
#ifdef EVENT_IDX
  STORE(device_stores, AVAIL_EVENT, last_avail);
#else
  STORE(device_stores, NO_NOTIFY, 0);
#endif
  armed = 1;
#ifndef F4
  FULL_BARRIER(device_stores);
#endif
#ifndef F5
  if
  :: avail_idx != last_avail -> goto again
  :: else
  fi;
#endif
end_asleep:
  atomic { kicked -> kicked = 0 };
  goto again
}

proctype driver() {
  byte asked = 0;
  byte answered = 0;
  byte avail = START;
  byte reaped = START;
  byte seen;
  bit wants_kick;

again:
#ifndef EVENT_IDX
  STORE(driver_stores, NO_INTERRUPT, 1);
#endif
  seen = used_idx;
  answered = answered + MINUS(seen, reaped);
  reaped = seen;
  assert(answered <= asked);
  do
  :: asked < REQUESTS && asked - answered < DEPTH ->
     asked++;
     avail = PLUS(avail, 1);
     STORE(driver_stores, AVAIL_IDX, avail);
     FULL_BARRIER(driver_stores);
#ifdef EVENT_IDX
     wants_kick = NEED_EVENT(avail_event, avail, MINUS(avail, 1));
#else
     wants_kick = !no_notify;
#endif
     if
     :: wants_kick -> kicked = 1
     :: else
     fi
  :: else -> break
  od;
  if
  :: answered == REQUESTS -> goto done
  :: else
  fi;
#ifdef EVENT_IDX
  STORE(driver_stores, USED_EVENT, reaped);
#else
  STORE(driver_stores, NO_INTERRUPT, 0);
#endif
  FULL_BARRIER(driver_stores);
  if
  :: used_idx != reaped -> goto again
  :: else
  fi;
  /* Asleep, and not at a place where it may end. */
  atomic { signalled -> signalled = 0 };
  goto again;
done:
  skip
}

init {
  atomic {
    run store_buffer(driver_stores);
    run store_buffer(device_stores);
    run device();
    run driver()
  }
}
