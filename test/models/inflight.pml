/*
 * What a device that is killed leaves to the next one, from the specification (vhost-user, "Inflight I/O tracking",
 * split virtqueue) and not from this project's code. A device may be killed before each of its stores, again and
 * again; a new one then reads the region and goes on.
 *
 *   -DF13_MARK   a head is marked in flight before its counter
 *   -DF13_BATCH  a batch is linked after used.idx
 *   -DF13_CLEAR  marks are cleared before used.idx
 *   -DF13_USED   the region has used.idx before the marks are cleared
 *
 * Each request must be answered once, and what is taken up again must come in the order in which it was taken first.
 */

#define HEADS    2
#define REQUESTS 4
#define KILLS    2
#define NONE     HEADS

/* The ring. Indices count on: what wraps is the business of split.pml. */
byte avail[REQUESTS]; /* heads */
byte avail_idx = 0;
byte used[REQUESTS];
byte used_idx = 0;

/* The region. */
bit inflight[HEADS];
byte counter[HEADS];
byte next[HEADS];
byte last_batch_head = 0;
byte region_used_idx = 0;

/* The front-end's own account: which request has the head, and in which order they came. */
byte request_of[HEADS];
bit is_open[HEADS];
byte submitted = 0;
byte reaped = 0;

byte kills = 0;

/* The process may end here. */
#define STORE \
  if \
  :: kills < KILLS -> kills++; goto killed \
  :: true \
  fi

/* Up to HEADS requests, at any time. */
proctype front_end() {
  byte head;
  do
  :: submitted < REQUESTS ->
     atomic {
       if
       :: !is_open[0] -> head = 0
       :: !is_open[1] -> head = 1
       :: used_idx > reaped -> head = NONE
       fi;
       if
       :: head != NONE ->
          is_open[head] = 1;
          request_of[head] = submitted;
          avail[avail_idx] = head;
          avail_idx++;
          submitted++
       :: else
       fi
     }
  :: used_idx > reaped ->
     atomic {
       assert(is_open[used[reaped]]); /* answered twice */
       is_open[used[reaped]] = 0;
       reaped++
     }
  :: submitted == REQUESTS && reaped == REQUESTS -> break
  od
}

proctype device() {
  byte ticket; /* the next counter */
  byte taken;
  byte mine[HEADS]; /* heads that this process has, in its order */
  byte count;
  byte index;
  byte head;
  byte batch;
  byte last; /* request that was taken up last */

start:
  atomic {
    ticket = 0;
    count = 0;
    last = 0;
    mine[0] = NONE;
    mine[1] = NONE
  };
  /* The batch that was published, and of which not every mark is cleared. */
  index = used_idx - region_used_idx;
  head = last_batch_head;
  do
  :: index > 0 ->
     STORE;
     inflight[head] = 0;
     head = next[head];
     index--
  :: else -> break
  od;
  STORE;
  region_used_idx = used_idx;
  /* What is owed, the lowest counter first. */
  atomic {
    if
    :: inflight[0] && inflight[1] ->
       if
       :: counter[0] < counter[1] -> mine[0] = 0; mine[1] = 1
       :: else -> mine[0] = 1; mine[1] = 0
       fi;
       assert(request_of[mine[0]] < request_of[mine[1]]); /* in another order */
       count = 2
    :: inflight[0] && !inflight[1] -> mine[0] = 0; count = 1
    :: !inflight[0] && inflight[1] -> mine[0] = 1; count = 1
    :: else
    fi;
    index = 0;
    do
    :: index < count ->
       assert(is_open[mine[index]]); /* it was answered */
       if
       :: counter[mine[index]] >= ticket -> ticket = counter[mine[index]] + 1
       :: else
       fi;
       index++
    :: else -> break
    od
  };
  taken = used_idx + count;

again:
  /* Takes what is there. */
  do
  :: taken < avail_idx && count < HEADS ->
     head = avail[taken];
#ifdef F13_MARK
     STORE;
     inflight[head] = 1;
     STORE;
     counter[head] = ticket;
#else
     STORE;
     counter[head] = ticket;
     STORE;
     inflight[head] = 1;
#endif
     ticket++;
     mine[count] = head;
     count++;
     taken++
  :: count > 0 -> break
  :: used_idx == REQUESTS -> goto done
  od;

  /* Answers one or all of them, in any order, as one batch. */
  if
  :: batch = 1
  :: count == 2 -> batch = 2
  :: count == 2 -> /* the second one first */
     d_step {
       head = mine[0];
       mine[0] = mine[1];
       mine[1] = head
     };
     batch = 1
  fi;
  index = 0;
  do
  :: index < batch ->
     STORE;
     used[used_idx + index] = mine[index];
     index++
  :: else -> break
  od;
#ifdef F13_CLEAR
  index = 0;
  do
  :: index < batch ->
     STORE;
     inflight[mine[index]] = 0;
     index++
  :: else -> break
  od;
#endif
#ifdef F13_BATCH
  STORE;
  used_idx = used_idx + batch;
#endif
  index = 0;
  do
  :: index < batch ->
     STORE;
     next[mine[index]] = last_batch_head;
     STORE;
     last_batch_head = mine[index];
     index++
  :: else -> break
  od;
#ifndef F13_BATCH
  STORE;
  used_idx = used_idx + batch;
#endif
#ifdef F13_USED
  STORE;
  region_used_idx = used_idx;
#endif
#ifndef F13_CLEAR
  index = 0;
  do
  :: index < batch ->
     STORE;
     inflight[mine[index]] = 0;
     index++
  :: else -> break
  od;
#endif
#ifndef F13_USED
  STORE;
  region_used_idx = used_idx;
#endif
  /* What is left is first now. */
  atomic {
    if
    :: batch == count
    :: else -> mine[0] = mine[1]
    fi;
    count = count - batch
  };
  goto again;

killed:
  goto start;
done:
  skip
}

init {
  atomic {
    run front_end();
    run device()
  }
}
