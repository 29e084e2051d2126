package control

import (
	"flag"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

//go:generate go test . -run TestActionsPage -update

var update = flag.Bool("update", false, "write generated pages instead of comparing them")

const actionsPage = "../docs/reference/actions.md"

func TestActionsPage(t *testing.T) {
	want := ActionsPage()
	if *update {
		if err := os.MkdirAll("../docs/reference", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(actionsPage, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(actionsPage)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s does not show the table: run go generate ./control", actionsPage)
	}
}

// Goal: the code does what the table says in every status, and a refusal names the statuses.
// Method: a group is put into each status by its records, in a store without nodes.
func TestActionTable(t *testing.T) {
	for _, a := range Actions {
		for _, status := range GroupStatuses {
			t.Run(string(a)+" in "+status, func(t *testing.T) {
				s := newSite(t)
				c := New(s.testConfig())
				g := store.Group{ID: "g", Project: caller.Project}
				r := newScene().r
				r.Group, r.Project, r.Intent = "g", caller.Project, protocol.IntentRun
				switch status {
				case StatusAvailable:
				case StatusFailovering:
					r.State, r.InSync = protocol.StateFailovering, true
				case StatusReversing:
					r.State, r.InSync = protocol.StateReversing, true
				case StatusFailovered:
					r.FailedOver = true
				default:
					g.Overlay = status
				}
				if got := recordStatus(g, r); got != status {
					t.Fatalf("the group is %s", got)
				}
				s.put(store.KeyGroup("g"), g)
				s.put(store.KeyRecord("g"), r)
				before := s.dump()
				var ext []Extend
				if a == ActionExtend {
					ext = []Extend{{"p1", 5}}
				}
				err := c.Act(s.ctx, caller, "g", a, ext)
				same := reflect.DeepEqual(before, s.dump())
				switch ActionTable[a][status] {
				case Refused:
					refused(t, err, KindConflict, "")
					if !strings.Contains(err.Error(), "it is "+status) || !same {
						t.Fatalf("error %v, nothing changed: %v", err, same)
					}
				case NoOp:
					if err != nil || !same {
						t.Fatalf("error %v, nothing changed: %v", err, same)
					}
				case Allowed:
					// No node is alive: what is taken is refused for that, or done.
					if err != nil && strings.Contains(err.Error(), "needs a group in status") {
						t.Fatal(err)
					}
				}
			})
		}
	}
}
