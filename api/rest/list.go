package rest

import (
	"cmp"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// byCreation is the default key, which every list has.
const byCreation = "created_at"

// MaxPage is the largest page of a list and the default one.
const MaxPage = 1000

// Page says which part of a list is asked for, and in which order.
type Page struct {
	Marker  string // id of the last item seen, "" for none
	Limit   int    // items, 0..MaxPage
	Offset  int    // items skipped after the marker
	SortKey string
	Desc    bool
}

// PageCodes are the vendor's codes for wrong parameters of a list; empty for none.
type PageCodes struct{ Limit, Marker, SortKey, SortDir string }

// Order tells how the items of a list are named and sorted. The default key is created_at, the
// default direction descending.
type Order[T any] struct {
	ID    func(T) string
	Keys  map[string]func(a, b T) int
	Codes PageCodes
	// MinLimit is the smallest limit that is allowed: 1 for the vendor, 0 for Cinder.
	MinLimit int
	// Clip: a limit above MaxPage means MaxPage instead of an error.
	Clip bool
}

// ReadPage reads marker, limit, offset, sort_key and sort_dir, or Cinder's sort=key:dir.
func (o Order[T]) ReadPage(q url.Values) (Page, error) {
	p := Page{Marker: q.Get("marker"), Limit: MaxPage, SortKey: byCreation, Desc: true}
	if s := q.Get("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err == nil && n > MaxPage && o.Clip {
			n = MaxPage
		}
		if err != nil || n < o.MinLimit || n > MaxPage {
			return p, BadRequestCode(o.Codes.Limit, "limit must be a whole number from %d to %d, not %.40q", o.MinLimit, MaxPage, s)
		}
		p.Limit = n
	}
	if s := q.Get("offset"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 {
			return p, BadRequest("offset must be a whole number of at least 0, not %.40q", s)
		}
		p.Offset = n
	}
	key, dir := q.Get("sort_key"), q.Get("sort_dir")
	if s := q.Get("sort"); s != "" && key == "" {
		key, dir, _ = strings.Cut(strings.Split(s, ",")[0], ":")
	}
	if key != "" {
		if _, ok := o.Keys[key]; !ok {
			return p, BadRequestCode(o.Codes.SortKey, "sort_key %.40q is not known; it may be %s", key, o.keyNames())
		}
		p.SortKey = key
	}
	switch dir {
	case "", "desc":
	case "asc":
		p.Desc = false
	default:
		return p, BadRequestCode(o.Codes.SortDir, "sort_dir must be asc or desc, not %.40q", dir)
	}
	return p, nil
}

func (o Order[T]) keyNames() string {
	names := make([]string, 0, len(o.Keys))
	for k := range o.Keys {
		names = append(names, k)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// compare is a total order: by the key, then by id, both in the direction asked for.
func (o Order[T]) compare(p Page, a, b *T) int {
	c := o.Keys[p.SortKey](*a, *b)
	if c == 0 {
		c = cmp.Compare(o.ID(*a), o.ID(*b))
	}
	if p.Desc {
		return -c
	}
	return c
}

// Select is the page of those items that keep admits; more says that others follow. The marker is
// looked up among all items, so that a page can be continued after the item it ended with stopped
// matching the filter; a marker that is no item's id is an error. items is not changed.
func (o Order[T]) Select(items []T, p Page, keep func(T) bool) (page []T, more bool, err error) {
	var marker *T
	out := make([]*T, 0, len(items)) // items are large
	for i := range items {
		if p.Marker != "" && o.ID(items[i]) == p.Marker {
			marker = &items[i]
		}
		if keep(items[i]) {
			out = append(out, &items[i])
		}
	}
	if p.Marker != "" && marker == nil {
		return nil, false, o.noMarker(p)
	}
	slices.SortFunc(out, func(a, b *T) int { return o.compare(p, a, b) })
	if marker != nil {
		i, found := slices.BinarySearchFunc(out, marker, func(a, b *T) int { return o.compare(p, a, b) })
		if found {
			i++
		}
		out = out[i:]
	}
	out = out[min(p.Offset, len(out)):]
	n := min(p.Limit, len(out))
	for _, x := range out[:n] {
		page = append(page, *x)
	}
	return page, n < len(out), nil
}

// Read is the page of those items of a list that keep admits; more says that others follow. each runs through
// those that keep admits by the time of creation, from after the item with that id ("": from the beginning),
// until fn answers false; known is false if there is no such item, which is an error as in Select. In the
// default order a page costs what is before its end; in any other all of the list is read and sorted.
func (o Order[T]) Read(p Page, keep func(T) bool, each func(after string, oldest bool, keep, fn func(T) bool) (known bool, err error)) (page []T, more bool, err error) {
	if p.SortKey != byCreation {
		var all []T
		orMarker := func(x T) bool { return keep(x) || p.Marker != "" && o.ID(x) == p.Marker }
		_, err := each("", true, orMarker, func(x T) bool {
			all = append(all, x)
			return true
		})
		if err != nil {
			return nil, false, err
		}
		return o.Select(all, p, keep)
	}
	skip := p.Offset
	known, err := each(p.Marker, !p.Desc, keep, func(x T) bool {
		switch {
		case skip > 0:
			skip--
		case len(page) == p.Limit:
			more = true
			return false
		default:
			page = append(page, x)
		}
		return true
	})
	if err == nil && !known {
		err = o.noMarker(p)
	}
	if err != nil {
		return nil, false, err
	}
	return page, more, nil
}

func (o Order[T]) noMarker(p Page) error {
	return BadRequestCode(o.Codes.Marker, "marker %.80q is not the id of an item of this list", p.Marker)
}

// CompareOpt orders optional strings, a missing one first.
func CompareOpt(a, b *string) int {
	switch {
	case a == nil && b == nil:
		return 0
	case a == nil:
		return -1
	case b == nil:
		return 1
	}
	return cmp.Compare(*a, *b)
}

// CompareOptTime orders optional instants, a missing one first.
func CompareOptTime(a, b *time.Time) int {
	switch {
	case a == nil && b == nil:
		return 0
	case a == nil:
		return -1
	case b == nil:
		return 1
	}
	return a.Compare(*b)
}

// EqualOpt reports whether an optional string is there and equals s.
func EqualOpt(a *string, s string) bool { return a != nil && *a == s }

// ChangedSince reads the changes-since filter: it admits what was updated, or never updated and
// created, at that instant or later. Without the filter everything is admitted.
func ChangedSince(q url.Values) (func(created time.Time, updated *time.Time) bool, error) {
	s := q.Get("changes-since")
	if s == "" {
		return func(time.Time, *time.Time) bool { return true }, nil
	}
	since, ok := ParseTime(s)
	if !ok {
		return nil, BadRequest("changes-since must be a time such as 2017-09-28T05:08:32, not %.40q", s)
	}
	return func(created time.Time, updated *time.Time) bool {
		if updated != nil {
			return !updated.Before(since)
		}
		return !created.Before(since)
	}, nil
}
