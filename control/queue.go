package control

import (
	"container/heap"
	"context"
	"sync"
	"time"
)

// queue hands out subjects to work on, each to one worker at a time. A subject added while it is
// waiting is there once; one added while it is worked on comes again afterwards. Its length is
// bounded by the number of things in the store.
type queue struct {
	mu      sync.Mutex // guards all below
	waiting []subject
	queued  map[subject]bool // in waiting
	last    []subject        // that wait for others, those that were taken before included
	idle    map[subject]bool // in last, and not taken
	taken   int
	working map[subject]bool
	again   map[subject]bool
	later   timers
	due     map[subject]time.Time // the one timer of later that counts for a subject
	wake    chan struct{}         // capacity 1: a nudge for one worker or the clock
}

func newQueue() *queue {
	return &queue{
		queued: map[subject]bool{}, idle: map[subject]bool{}, working: map[subject]bool{}, again: map[subject]bool{},
		due:  map[subject]time.Time{},
		wake: make(chan struct{}, 1),
	}
}

type timer struct {
	at  time.Time
	sub subject
}

type timers []timer

func (t timers) Len() int           { return len(t) }
func (t timers) Less(i, j int) bool { return t[i].at.Before(t[j].at) }
func (t timers) Swap(i, j int)      { t[i], t[j] = t[j], t[i] }
func (t *timers) Push(x any)        { *t = append(*t, x.(timer)) }
func (t *timers) Pop() any {
	old := *t
	x := old[len(old)-1]
	*t = old[:len(old)-1]
	return x
}

// add asks for work on a subject now.
func (q *queue) add(sub subject) {
	q.mu.Lock()
	q.addLocked(sub)
	q.mu.Unlock()
	q.nudge()
}

// addLast asks for work on a subject when there is little other work: what has just changed must not wait for
// everything that is there when a leader begins.
func (q *queue) addLast(sub subject) {
	q.mu.Lock()
	switch {
	case q.working[sub]:
		q.again[sub] = true
	case !q.queued[sub] && !q.idle[sub]:
		q.idle[sub] = true
		q.last = append(q.last, sub)
	}
	q.mu.Unlock()
	q.nudge()
}

func (q *queue) addLocked(sub subject) {
	delete(q.idle, sub)
	switch {
	case q.working[sub]:
		q.again[sub] = true
	case !q.queued[sub]:
		q.queued[sub] = true
		q.waiting = append(q.waiting, sub)
	}
}

func (q *queue) nudge() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// next waits for a subject; false: ctx ended.
func (q *queue) next(ctx context.Context) (subject, bool) {
	for {
		q.mu.Lock()
		now := time.Now()
		for len(q.later) > 0 && !q.later[0].at.After(now) {
			t := heap.Pop(&q.later).(timer)
			if q.due[t.sub].Equal(t.at) {
				delete(q.due, t.sub)
				q.addLocked(t.sub)
			}
		}
		wait := time.Hour
		if len(q.later) > 0 {
			wait = q.later[0].at.Sub(now)
		}
		if sub, ok := q.take(); ok {
			more := len(q.waiting)+len(q.last)+len(q.later) > 0 // somebody else must look at them
			q.mu.Unlock()
			if more {
				q.nudge()
			}
			return sub, ctx.Err() == nil
		}
		q.mu.Unlock()
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			q.nudge() // the other workers are to see it, too
			return subject{}, false
		case <-q.wake:
		case <-t.C:
		}
		t.Stop()
	}
}

// lastEvery is how often the turn is that of what waits last, even if there is other work.
const lastEvery = 8

// take gives the first that waits, and makes it one that is worked on; q.mu is held.
func (q *queue) take() (sub subject, ok bool) {
	q.taken++
	for !ok && len(q.waiting)+len(q.last) > 0 {
		if len(q.waiting) > 0 && (len(q.last) == 0 || q.taken%lastEvery > 0) {
			sub, q.waiting, ok = q.waiting[0], q.waiting[1:], true
			delete(q.queued, sub)
			continue
		}
		sub, q.last = q.last[0], q.last[1:]
		ok = q.idle[sub] // else it was asked for again, and taken from waiting
		delete(q.idle, sub)
	}
	if ok {
		q.working[sub] = true
	}
	return sub, ok
}

// done ends the work on a subject; after > 0 asks for it again then.
func (q *queue) done(sub subject, after time.Duration) {
	q.mu.Lock()
	delete(q.working, sub)
	if q.again[sub] {
		delete(q.again, sub)
		q.addLocked(sub)
	}
	if after > 0 {
		at := time.Now().Add(after)
		if due, ok := q.due[sub]; !ok || at.Before(due) {
			q.due[sub] = at
			heap.Push(&q.later, timer{at, sub})
		}
	}
	q.mu.Unlock()
	q.nudge()
}
