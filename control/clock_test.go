package control

import (
	"sync"
	"time"
)

type timeDuration = time.Duration

// stampClock is a clock that a test moves.
type stampClock struct {
	mu sync.Mutex // guards at
	at time.Time
}

func newStamp() *stampClock { return &stampClock{at: time.Unix(1e9, 0)} }

func (s *stampClock) now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at
}

func (s *stampClock) add(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at = s.at.Add(d)
}
