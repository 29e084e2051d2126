package etcdstore

import (
	"context"
	"errors"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockstep-dr/lockstep/store"
)

const (
	// pageKeys is how many keys one request of a List reads at most.
	pageKeys = 1000
	// listTries is how often a List begins anew when its revision is compacted under it.
	listTries = 3
	// A range with more than wideKeys keys is read in narrower ones, one with less than sparseKeys is
	// followed by a wider one.
	wideKeys   = 4 * pageKeys
	sparseKeys = pageKeys / 8
)

// List implements store.Store. It reads in pages, each with a request timeout of its own, all at
// the revision of the first.
func (s *Store) List(ctx context.Context, prefix string) ([]store.KV, int64, error) {
	var err error
	for range listTries {
		l := lister{s: s, prefix: prefix}
		if err = l.read(ctx); err == nil {
			return l.kvs, l.rev, nil
		}
		if !errors.Is(err, rpctypes.ErrCompacted) {
			break
		}
	}
	return nil, 0, err
}

// lister reads one prefix at one revision. However few keys a request is to answer with, etcd visits every key
// of the request's range, to count them: pages to the end of a large prefix would cost the square of its size.
// So each request asks for a range that holds little more than a page: from where the last one ended to the
// end of the keys that begin with the same so many bytes.
type lister struct {
	s      *Store
	prefix string
	kvs    []store.KV
	rev    int64

	width   int   // bytes after the prefix that the keys of a range have in common
	visited int64 // keys of the ranges of all requests
}

func (l *lister) read(ctx context.Context) error {
	prefix := l.s.prefix + l.prefix
	from, end := prefix, clientv3.GetPrefixRangeEnd(prefix)
	for rest := false; ; { // rest: from is in the middle of a range
		to := end
		if l.width > 0 {
			to = clientv3.GetPrefixRangeEnd(from[:min(len(from), len(prefix)+l.width)])
		}
		if to > end || to == "\x00" { // that follows every key there can be
			to = end
		}
		resp, err := l.s.page(ctx, from, to, l.rev)
		if err != nil {
			return l.s.fault(ctx, "list "+l.prefix, err)
		}
		if l.rev == 0 {
			l.rev = resp.Header.Revision
		}
		l.visited += resp.Count
		for _, kv := range resp.Kvs {
			l.kvs = append(l.kvs, store.KV{
				Key: string(kv.Key[len(l.s.prefix):]), Value: kv.Value,
				ModRev: kv.ModRevision, CreateRev: kv.CreateRevision,
			})
		}
		switch {
		case resp.More && len(resp.Kvs) > 0:
			first, last := resp.Kvs[0].Key, resp.Kvs[len(resp.Kvs)-1].Key
			from, rest = string(last)+"\x00", true
			if resp.Count > wideKeys {
				l.width = max(l.width+1, common(first, last)-len(prefix))
			}
		case to == end:
			return nil
		default:
			if len(resp.Kvs) < sparseKeys && !rest {
				l.width--
			}
			from, rest = to, false
		}
	}
}

// common is the number of bytes with which both begin.
func common(a, b []byte) int {
	n := 0
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}

func (s *Store) page(ctx context.Context, from, end string, rev int64) (*clientv3.GetResponse, error) {
	ctx, cancel := s.request(ctx, s.timeout)
	defer cancel()
	return s.cli.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(pageKeys), clientv3.WithRev(rev),
		clientv3.WithSort(clientv3.SortByKey, clientv3.SortAscend))
}
