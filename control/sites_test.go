package control

import (
	"strings"
	"testing"
)

func TestStoreDiesWith(t *testing.T) {
	for _, c := range []struct {
		sites string
		dies  bool
	}{
		{"", false},
		{"az1", true},
		{"az2", false},
		{"witness", false},
		{"az1 az2", true},
		{"az1 az2 witness", false},
		{"az1 az1 az2", true},
		{"az1 az1 az2 az2 witness", false},
		{"az1 az1 az1 az2 witness", true},
	} {
		if got := StoreDiesWith(strings.Fields(c.sites), "az1"); got != c.dies {
			t.Errorf("members in %q: %v, want %v", c.sites, got, c.dies)
		}
	}
}

// Goal: every view of a group says so while the store's quorum sits in one of its zones; another
// controller's configuration counts for all from then on.
func TestGroupsWarnOfTheStoresSite(t *testing.T) {
	s := newSite(t, "a1", "b1")
	c, stop := s.controller(func(cfg *Config) { cfg.StoreSites = []string{"az2"} })
	id, _ := s.group(c, 1)
	want := "failover impossible if AZ az2 is lost: the majority of the store's members is there"
	warned := func(c *Controller) []string { return must[GroupView](t)(c.GetGroup(s.ctx, caller, id)).Warnings }
	if list := must[[]GroupView](t)(c.ListGroups(s.ctx, caller)); len(list) != 1 || len(list[0].Warnings) != 1 || list[0].Warnings[0] != want {
		t.Errorf("the list shows %+v", list)
	}
	if got := warned(c); len(got) != 1 || got[0] != want {
		t.Fatalf("warnings %q", got)
	}
	stop()
	c, stop = s.controller() // one that does not know leaves what is known
	if got := warned(c); len(got) != 1 || got[0] != want {
		t.Fatalf("warnings after a controller that does not know: %q", got)
	}
	stop()
	c, _ = s.controller(func(cfg *Config) { cfg.StoreSites = []string{"az1", "az2", "witness"} })
	eventually(t, "no warning", func() bool { return len(warned(c)) == 0 })
}
