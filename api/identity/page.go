package identity

import (
	"cmp"
	"net/url"
	"slices"
	"strconv"

	"github.com/lockstep-dr/lockstep/api/rest"
)

// page cuts a list down to what limit and marker ask for, by id, and writes it as Keystone does: with a link
// to the next page if there is one. Without a limit all is one page: clients of Keystone do not follow
// links they did not ask for. The marker may be an item that is gone meanwhile: what comes after its place follows.
func page[T any](r *rest.Request, name string, items []T, id func(T) string, view func(*rest.Request, T) map[string]any) (any, error) {
	q := r.URL.Query()
	limit := len(items)
	if v := q.Get("limit"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 {
			return nil, rest.BadRequest("limit must be a whole number of at least 1, not %.40q", v)
		}
		limit = min(n, rest.MaxPage)
	}
	items = slices.Clone(items)
	slices.SortFunc(items, func(a, b T) int { return cmp.Compare(id(a), id(b)) })
	if marker := q.Get("marker"); marker != "" {
		n, found := slices.BinarySearchFunc(items, marker, func(x T, m string) int { return cmp.Compare(id(x), m) })
		if found {
			n++
		}
		items = items[n:]
	}
	var next any
	if len(items) > limit {
		items = items[:limit]
		q.Set("marker", id(items[limit-1]))
		q.Set("limit", strconv.Itoa(limit))
		next = link(r, q)
	}
	out := []any{}
	for _, x := range items {
		out = append(out, view(r, x))
	}
	return map[string]any{name: out, "links": map[string]any{
		"self": r.Base + r.URL.Path, "next": next, "previous": nil,
	}}, nil
}

func link(r *rest.Request, q url.Values) string { return r.Base + r.URL.Path + "?" + q.Encode() }
