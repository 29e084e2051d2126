package whole

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/control"
)

// brain is one controller process, started again whenever it dies.
type brain struct {
	w    *World
	id   string
	gate gate

	mu    sync.Mutex // guards what follows
	ctl   *control.Controller
	store *storeLink
	ctx   context.Context // ends with the process
	stop  context.CancelFunc
	done  chan struct{}
	on    bool
}

func (b *brain) start() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.on || b.w.over.Load() {
		return
	}
	b.on = true
	link := newStoreLink(b.w, b.id, &b.gate)
	b.store = link
	b.ctx, b.stop = context.WithCancel(context.Background())
	b.done = make(chan struct{})
	b.ctl = control.New(control.Config{
		Store: link, ID: b.id, ClusterID: "cluster", Region: "r", Zones: []lockstep.AZ{"az1", "az2"}, Logger: b.w.logger(b.id),
	})
	ctl, ctx, done := b.ctl, b.ctx, b.done
	b.w.tasks.Go(func() {
		defer close(done)
		if err := ctl.Run(ctx); err != nil {
			b.w.fail("controller %s ended: %v", b.id, err)
		}
	})
}

// kill ends the controller where it stands.
func (b *brain) kill() {
	b.mu.Lock()
	if !b.on {
		b.mu.Unlock()
		return
	}
	b.on = false
	link, done := b.store, b.done
	link.cutOff()
	b.gate.set(false)
	b.stop()
	b.mu.Unlock()
	b.w.say(b.id, "killed")
	<-done
	link.close()
}

// crashAtWrite kills the controller at its n-th transaction from now: half of the time just before the
// store takes it, half of the time just after.
func (b *brain) crashAtWrite(n int, again time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.on {
		return
	}
	link := b.store
	link.mu.Lock()
	defer link.mu.Unlock()
	link.crashAt = link.writes + n
	link.onCrash = func() {
		link.dead.Store(true)
		b.w.say(b.id, "dies at transaction %d", n)
		b.w.tasks.Go(func() {
			b.kill()
			time.Sleep(again)
			b.start()
		})
	}
}

func (b *brain) pause(on bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.on {
		return
	}
	b.w.say(b.id, "%s", map[bool]string{true: "stands still", false: "goes on"}[on])
	b.gate.set(on)
	b.store.stall(on)
}

// call makes a call of the API at a controller that runs; it ends with it.
func (w *World) call(ctx context.Context, f func(ctx context.Context, ctl *control.Controller) error) error {
	var alive []*brain
	for _, b := range w.brains {
		b.mu.Lock()
		if b.on {
			alive = append(alive, b)
		}
		b.mu.Unlock()
	}
	if len(alive) == 0 {
		return fmt.Errorf("no controller runs: %w", lockstep.ErrStoreUnavailable)
	}
	b := pick(w.operatorDice, alive)
	b.mu.Lock()
	ctl, life := b.ctl, b.ctx
	b.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(life, cancel)()
	return f(ctx, ctl)
}
