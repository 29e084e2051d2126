package disk

import "sync"

// sharedRun runs an operation so that a caller never relies on a run that began before its call, and
// so that callers who wait for the same next run share it. The first caller runs it in its own
// goroutine; no helper goroutine is in the way when there is only one.
type sharedRun struct {
	mu      sync.Mutex // guards the rest; not held while the operation runs
	cond    sync.Cond
	running bool
	begun   uint64 // runs that have begun
	done    uint64 // runs that have ended
	err     error  // first failure; final
}

func (g *sharedRun) init() { g.cond.L = &g.mu }

// do returns after a run of f that began after do was called. The first error is everybody's,
// from then on.
func (g *sharedRun) do(f func() error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.doLocked(g.begun+1, f)
}

// doLocked returns when run number want has ended, running f itself if nobody else does. It is
// called with mu held and returns with it held.
func (g *sharedRun) doLocked(want uint64, f func() error) error {
	for g.err == nil && g.done < want {
		if g.running {
			g.cond.Wait()
			continue
		}
		g.running = true
		g.begun++
		g.mu.Unlock()
		err := f()
		g.mu.Lock()
		g.running = false
		g.done++
		if g.err == nil {
			g.err = err
		}
		g.cond.Broadcast()
	}
	return g.err
}
