package rest

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

type item struct {
	id   string
	n    int
	keep bool
}

var itemOrder = Order[item]{
	ID: func(i item) string { return i.id },
	Keys: map[string]func(a, b item) int{
		"created_at": func(a, b item) int { return cmp.Compare(a.n, b.n) },
		"id":         func(a, b item) int { return cmp.Compare(a.id, b.id) },
	},
	Codes: PageCodes{Limit: "L", Marker: "M", SortKey: "K", SortDir: "D"}, MinLimit: 1,
}

func kept(i item) bool { return i.keep }

// drawItems draws items with few different keys, so that ties are common.
func drawItems(t *rapid.T) []item {
	n := rapid.IntRange(0, 30).Draw(t, "items")
	out := make([]item, n)
	for i := range out {
		out[i] = item{fmt.Sprintf("id%02d", i), rapid.IntRange(0, 3).Draw(t, "key"), rapid.Bool().Draw(t, "keep")}
	}
	return rapid.Permutation(out).Draw(t, "order")
}

func drawPage(t *rapid.T) Page {
	return Page{
		Limit: rapid.IntRange(1, 10).Draw(t, "limit"), SortKey: rapid.SampledFrom([]string{"created_at", "id"}).Draw(t, "sort"),
		Desc: rapid.Bool().Draw(t, "desc"),
	}
}

// whole is the definition that pages are compared with: filter, then sort.
func whole(items []item, p Page) []item {
	var out []item
	for _, it := range items {
		if it.keep {
			out = append(out, it)
		}
	}
	slices.SortFunc(out, func(a, b item) int {
		c := cmp.Compare(a.id, b.id)
		if p.SortKey == "created_at" && a.n != b.n {
			c = cmp.Compare(a.n, b.n)
		}
		if p.Desc {
			c = -c
		}
		return c
	})
	return out
}

// TestPagesByMarkerAndOffset: going through a list by markers, or by offsets, shows every item
// that the filter admits exactly once and in order, and leaves the input as it was.
func TestPagesByMarkerAndOffset(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		items, p := drawItems(t), drawPage(t)
		before, want := slices.Clone(items), whole(items, p)
		byMarker := rapid.Bool().Draw(t, "by marker")
		var got []item
		for range len(items) + 1 {
			page, more, err := itemOrder.Select(items, p, kept)
			if err != nil {
				t.Fatal(err)
			}
			if len(page) > p.Limit {
				t.Fatalf("a page of %d items with limit %d", len(page), p.Limit)
			}
			got = append(got, page...)
			if more != (len(got) < len(want)) {
				t.Fatalf("more is %v after %d of %d items", more, len(got), len(want))
			}
			if !more {
				break
			}
			if byMarker {
				p.Marker = page[len(page)-1].id
			} else {
				p.Offset += len(page)
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("pages give %v, want %v", got, want)
		}
		if !slices.Equal(items, before) {
			t.Fatal("the input was changed")
		}
	})
}

// TestMarkerOutsideTheFilter: a marker that the filter does not admit continues where it would
// stand; one that is no item at all is refused.
func TestMarkerOutsideTheFilter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		items, p := drawItems(t), drawPage(t)
		if len(items) == 0 {
			return
		}
		p.Limit = 1000
		marker := rapid.SampledFrom(items).Draw(t, "marker")
		p.Marker = marker.id
		got, _, err := itemOrder.Select(items, p, kept)
		if err != nil {
			t.Fatal(err)
		}
		var want []item
		for _, it := range whole(items, p) {
			if itemOrder.compare(p, &it, &marker) > 0 {
				want = append(want, it)
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("after %v: %v, want %v", marker, got, want)
		}
		p.Marker = "other"
		var e *Error
		if _, _, err := itemOrder.Select(items, p, kept); !errors.As(err, &e) || e.Code != "M" || e.Status != 400 {
			t.Fatalf("unknown marker: %v", err)
		}
	})
}

func TestReadPage(t *testing.T) {
	for query, want := range map[string]Page{
		"":                         {Limit: 1000, SortKey: "created_at", Desc: true},
		"limit=1000&offset=7":      {Limit: 1000, Offset: 7, SortKey: "created_at", Desc: true},
		"marker=m&sort_dir=asc":    {Marker: "m", Limit: 1000, SortKey: "created_at"},
		"sort_key=id&sort_dir=":    {Limit: 1000, SortKey: "id", Desc: true},
		"sort=id:asc,created_at":   {Limit: 1000, SortKey: "id"},
		"sort_key=id&sort=x:wrong": {Limit: 1000, SortKey: "id", Desc: true},
	} {
		q, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := itemOrder.ReadPage(q); err != nil || got != want {
			t.Errorf("%q: %+v, %v, want %+v", query, got, err, want)
		}
	}
	for query, code := range map[string]string{
		"limit=0": "L", "limit=1001": "L", "limit=x": "L", "limit=1.5": "L", "limit=99999999999999999999": "L",
		"sort_key=": "", "sort_key=x": "K", "sort_dir=ASC": "D", "offset=-1": "", "offset=x": "",
	} {
		q, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		_, err = itemOrder.ReadPage(q)
		var e *Error
		if query == "sort_key=" {
			if err != nil {
				t.Errorf("%q: %v", query, err)
			}
		} else if !errors.As(err, &e) || e.Code != code || e.Status != 400 {
			t.Errorf("%q: %v, want code %q", query, err, code)
		}
	}
	lenient := itemOrder
	lenient.MinLimit, lenient.Clip = 0, true
	for query, limit := range map[string]int{"limit=0": 0, "limit=5000": 1000} {
		q, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		if p, err := lenient.ReadPage(q); err != nil || p.Limit != limit {
			t.Errorf("%q: %+v, %v", query, p, err)
		}
	}
}

func TestChangedSince(t *testing.T) {
	at := time.Date(2017, 9, 28, 5, 8, 32, 0, time.UTC)
	later := at.Add(time.Hour)
	for since, want := range map[string][2]bool{ // never updated; updated an hour later
		"": {true, true}, "2017-09-28T05:08:32": {true, true}, "2017-09-28T05:08:33": {false, true},
		"2017-09-28T05:08:32.000001": {false, true}, "2017-09-28T08:08:32+02:00": {false, true},
		"2017-09-28": {true, true}, "2017-09-28T06:08:33Z": {false, false},
	} {
		f, err := ChangedSince(url.Values{"changes-since": {since}})
		if err != nil {
			t.Errorf("%q: %v", since, err)
			continue
		}
		if got := [2]bool{f(at, nil), f(at, &later)}; got != want {
			t.Errorf("%q: %v, want %v", since, got, want)
		}
	}
}

// TestParseObject: whatever the bytes, parsing ends in an object or a 400, and reading any member
// as any type does as well.
func TestParseObject(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		raw := rapid.OneOf(rapid.String(), rapid.StringMatching(`\{("a":([0-9]{1,25}|-?1e9|true|null|"x"|\[("y",?)*\]|\{\}))?\}`)).Draw(t, "raw")
		o, err := ParseObject([]byte(raw))
		var e *Error
		if err != nil {
			if !errors.As(err, &e) || e.Status != 400 {
				t.Fatalf("%q: %v", raw, err)
			}
			return
		}
		switch rapid.IntRange(0, 7).Draw(t, "type") {
		case 0:
			o.Int("a")
		case 1:
			o.String("a")
		case 2:
			o.Bool("a")
		case 3:
			o.Strings("a")
		case 4:
			o.StringsOrCommas("a")
		case 5:
			o.Object("a").GiB("b")
		case 6:
			o.StringMap("a")
		case 7:
			o.GiB("a")
		}
		if err := o.Err(); err != nil && (!errors.As(err, &e) || e.Status != 400) {
			t.Fatalf("%q: %v", raw, err)
		}
	})
}

// TestSurrogates: half of a character is refused wherever it stands; a whole one, and what only looks
// like a half, is taken as it is.
func TestSurrogates(t *testing.T) {
	for _, half := range []string{`\ud800`, `\uD800`, `\udc00`, `\uDFFF`, `\ud800x`, `x\ud83dy`, `\ud83d\ud83d`, `\ude00\ud83d`, `\ud83d\n`, `\ud83d\u0041`, `\\\ud800`} {
		for _, body := range []string{`{"name":"` + half + `"}`, `{"` + half + `":1}`, `{"a":[{"b":["` + half + `"]}]}`} {
			var e *Error
			if _, err := ParseObject([]byte(body)); !errors.As(err, &e) || e.Status != 400 {
				t.Errorf("%s: %v", body, err)
			}
		}
	}
	for text, want := range map[string]string{`\ud83d\ude00`: "\U0001F600", `\uD83D\uDE00\uD83D\uDE00`: "\U0001F600\U0001F600", `\\ud800`: `\ud800`, `\ufffd`: "\ufffd", `\ud7ff\ue000`: "\ud7ff\ue000", "\ufffd": "\ufffd"} {
		o, err := ParseObject([]byte(`{"name":"` + text + `"}`))
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got := o.Name("name"); got == nil || *got != want {
			t.Errorf("%s: %v, want %q", text, got, want)
		}
	}
}

// Goal: a page that is read in the order of creation is the page that Select makes of the whole list, and
// no more than its part of the list is looked at.
func TestReadIsSelect(t *testing.T) {
	type item struct {
		id   string
		at   time.Time
		even bool
	}
	base := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var all []item
	for i := range 60 {
		all = append(all, item{fmt.Sprintf("%02d", i*7%60), base.Add(time.Duration(i/4) * time.Second), i%2 == 0})
	}
	byTime := func(a, b item) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.id, b.id)) }
	order := Order[item]{
		ID: func(x item) string { return x.id }, Codes: PageCodes{Marker: "code"},
		Keys: map[string]func(a, b item) int{
			"created_at": func(a, b item) int { return a.at.Compare(b.at) },
			"id":         func(a, b item) int { return cmp.Compare(a.id, b.id) },
		},
	}
	looked := 0
	each := func(after string, oldest bool, keep, fn func(item) bool) (bool, error) {
		list := slices.SortedFunc(slices.Values(all), byTime)
		if !oldest {
			slices.Reverse(list)
		}
		if after != "" {
			i := slices.IndexFunc(list, func(x item) bool { return x.id == after })
			if i < 0 {
				return false, nil
			}
			list = list[i+1:]
		}
		for _, x := range list {
			if looked++; keep(x) && !fn(x) {
				break
			}
		}
		return true, nil
	}
	keep := map[string]func(item) bool{"all": func(item) bool { return true }, "even": func(x item) bool { return x.even }, "none": func(item) bool { return false }}
	for name, admit := range keep {
		for _, p := range []Page{{Limit: 10}, {Limit: 0}, {Limit: 100}, {Limit: 7, Offset: 5}, {Limit: 5, Offset: 100}, {Limit: 10, Marker: "21"}, {Limit: 10, Marker: "00"}, {Limit: 3, Marker: "35", Offset: 2}, {Limit: 3, Marker: "missing"}} {
			for _, key := range []string{"created_at", "id"} {
				for _, desc := range []bool{true, false} {
					p.SortKey, p.Desc = key, desc
					looked = 0
					page, more, err := order.Read(p, admit, each)
					want, wantMore, wantErr := order.Select(all, p, admit)
					if !slices.Equal(page, want) || more != wantMore || (err == nil) != (wantErr == nil) || err != nil && err.Error() != wantErr.Error() {
						t.Errorf("%s, %+v: %v, more %v, error %v; want %v, %v, %v", name, p, page, more, err, want, wantMore, wantErr)
					}
					if name == "all" && key == "created_at" && looked > p.Limit+p.Offset+1 {
						t.Errorf("%+v: %d items were looked at", p, looked)
					}
				}
			}
		}
	}
}
