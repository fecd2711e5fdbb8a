/*
 * Who rings the doorbell of a TCMU ring: the event loop, or a thread of its own for batches with much data. The kernel
 * looks at the tail within the doorbell and at no other time, and the initiator waits for every answer.
 *
 *   -DF11  the event loop stores a tail while the thread is ringing
 *
 * The end that must not be reached: an answer that nobody will ring for, which spin reports as an invalid end state.
 */

#define COMMANDS 4

byte recorded = 0; /* answers written into the ring */
byte tail = 0;     /* as stored: answers that the kernel may see */
byte drained = 0;  /* answers that it has seen */
bit ringing = 0;   /* the thread is about to ring, or in the kernel */

/* In the kernel: the tail is read, and the data of the answers up to there is copied, which takes its time. */
inline ring_doorbell(seen) {
  seen = tail;
  assert(seen >= drained);
  drained = seen
}

proctype event_loop() {
  byte seen;
  bit rings;
  do
  :: recorded < COMMANDS ->
     atomic { /* under the server's lock */
       recorded++;
       rings = 0;
       if
#ifdef F11
       :: true ->
#else
       :: !ringing ->
#endif
          tail = recorded;
          if
          :: ringing
          :: !ringing -> rings = 1
          :: !ringing -> ringing = 1
          fi
       :: else
       fi
     };
     if
     :: rings -> ring_doorbell(seen)
     :: else
     fi
  :: else -> break
  od
}

proctype ringing_thread() {
  byte seen;
end:
  do
  :: ringing ->
     ring_doorbell(seen);
     atomic { /* under the server's lock */
       if
       :: recorded != tail -> tail = recorded
       :: else -> ringing = 0
       fi
     }
  od
}

proctype initiator() {
  drained == COMMANDS
}

init {
  atomic {
    run event_loop();
    run ringing_thread();
    run initiator()
  }
}
