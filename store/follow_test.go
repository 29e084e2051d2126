package store

import (
	"context"
	"testing"
)

// restored is a store whose only watch breaks, and which is another one afterwards.
type restored struct {
	Store
	lists []func() ([]KV, int64)
}

func (r *restored) List(context.Context, string) ([]KV, int64, error) {
	next := r.lists[0]
	if len(r.lists) > 1 {
		r.lists = r.lists[1:]
	}
	kvs, rev := next()
	return kvs, rev, nil
}

func (r *restored) Watch(context.Context, string, int64) <-chan []Event {
	gone := make(chan []Event)
	close(gone) // history was compacted
	return gone
}

// Goal: a store that was restored from an older copy is noticed whether its revision went back or, as
// etcd's own tool can make it, was raised; one that only went on is not. (R105)
func TestFollowNoticesAStoreThatWentBack(t *testing.T) {
	type list = func() ([]KV, int64)
	at := func(modRev, rev int64) list {
		return func() ([]KV, int64) {
			return []KV{{Key: "p/a", ModRev: 3, Value: Encode(1)}, {Key: "p/b", ModRev: modRev, Value: Encode(2)}}, rev
		}
	}
	for name, c := range map[string]struct {
		then list
		want bool
	}{
		"its revision went back":   {at(5, 6), true},
		"its revision was raised":  {at(5, 1_000_006), true},
		"it went on":               {at(14, 20), false},
		"it went on, nothing here": {at(9, 20), false},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		lists, rewound := 0, false
		_ = Follow(ctx, &restored{lists: []list{at(9, 10), c.then}}, "p/", func(batch []Change[int]) {
			lists++
			for _, ch := range batch {
				rewound = rewound || ch.Rewound
			}
			if lists == 2 {
				cancel()
			}
		})
		cancel()
		if rewound != c.want {
			t.Errorf("%s: noticed %v", name, rewound)
		}
	}
}
