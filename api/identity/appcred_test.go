package identity

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/store/memstore"
)

// TestCredentialsTogether: however many are made at once, a user has no more than the bound, one of a name, and
// each that is refused is refused for its own reason.
func TestCredentialsTogether(t *testing.T) {
	_, s, b, _ := setup(t)
	together := func(n int, name func(int) string) (made int, refused map[error]int) {
		var wg sync.WaitGroup
		results := make(chan error, n)
		for i := range n {
			wg.Go(func() {
				_, _, err := s.createAppCred(t.Context(), AppCred{Name: name(i), User: b.UserID, Project: b.ProjectID, Roles: []string{RoleMember}}, "x")
				results <- err
			})
		}
		wg.Wait()
		close(results)
		refused = map[error]int{}
		for err := range results {
			switch {
			case err == nil:
				made++
			case errors.Is(err, ErrInUse):
				refused[ErrInUse]++
			case errors.Is(err, lockstep.ErrExists):
				refused[lockstep.ErrExists]++
			default:
				t.Error(err)
			}
		}
		return made, refused
	}
	if made, refused := together(3, func(int) string { return "same" }); made != 1 || refused[lockstep.ErrExists] != 2 {
		t.Errorf("of one name: %d made, %v", made, refused)
	}
	if made, refused := together(maxAppCreds+2, func(i int) string { return fmt.Sprint(i) }); made != maxAppCreds-1 || refused[ErrInUse] != 3 {
		t.Errorf("of many names: %d made, %v", made, refused)
	}
	u, found, err := s.user(t.Context(), b.UserID)
	if err != nil || !found || u.Generation != 0 || !u.Enabled || u.Name != b.UserName {
		t.Errorf("the user is %+v, %v", u, err)
	}
	if err := s.DeleteUser(t.Context(), b.UserID); err != nil {
		t.Fatal(err)
	}
	_, _, err = s.createAppCred(t.Context(), AppCred{Name: "late", User: b.UserID, Project: b.ProjectID, Roles: []string{RoleMember}}, "x")
	if !errors.Is(err, lockstep.ErrNotFound) {
		t.Errorf("for a user that is gone: %v", err)
	}
}

// TestSweepCredentials: credentials whose time is over go with all their keys; others stay.
func TestSweepCredentials(t *testing.T) {
	st, s, b, c := setup(t)
	issue := func(name string, life time.Duration) AppCred {
		cred := AppCred{Name: name, User: b.UserID, Project: b.ProjectID, Roles: []string{RoleMember}}
		if life != 0 {
			end := c.now().Add(life)
			cred.ExpiresAt = &end
		}
		cred, _, err := s.createAppCred(t.Context(), cred, "secret")
		if err != nil {
			t.Fatal(err)
		}
		return cred
	}
	gone, stays, lasts := issue("short", time.Hour), issue("long", 2*time.Hour), issue("ever", 0)
	if n, err := s.SweepCredentials(t.Context()); n != 0 || err != nil {
		t.Fatalf("before their time: %d, %v", n, err)
	}
	c.advance(time.Hour)
	if n, err := s.SweepCredentials(t.Context()); n != 1 || err != nil {
		t.Fatalf("swept %d, %v", n, err)
	}
	for cred, want := range map[*AppCred]bool{&gone: false, &stays: true, &lasts: true} {
		for _, k := range cred.keys() {
			if _, err := st.Get(t.Context(), k); (err == nil) != want {
				t.Errorf("%s: %s: %v", cred.Name, k, err)
			}
		}
	}
	// What was deleted and made anew meanwhile keeps its name.
	anew := issue("short", 0)
	if deleted, err := s.deleteCredential(t.Context(), gone); deleted || err != nil {
		t.Errorf("deleted twice: %v, %v", deleted, err)
	}
	if id, err := s.idByName(t.Context(), "appcred", b.UserID, "short"); id != anew.ID || err != nil {
		t.Errorf("the name leads to %q, %v", id, err)
	}
}

// TestRunSweeps: tokens and credentials go without anybody's call.
func TestRunSweeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := memstore.NewMem()
		defer func() { _ = st.Close() }()
		b, err := Bootstrap(t.Context(), st, BootstrapConfig{Password: secret})
		if err != nil {
			t.Fatal(err)
		}
		s, err := New(Config{Store: st, TokenTTL: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		end := time.Now().Add(time.Hour)
		cred, secret, err := s.createAppCred(t.Context(), AppCred{
			Name: "c", User: b.UserID, Project: b.ProjectID, Roles: []string{RoleMember}, ExpiresAt: &end,
		}, "")
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.login(t.Context(), login{method: "application_credential", cred: named{id: cred.ID}, secret: secret}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		count := func() int {
			n := 0
			for _, p := range []string{"tokens", "appcreds", "appcredusers", "names/appcred"} {
				kvs, _, err := st.List(t.Context(), key(p)+"/")
				if err != nil {
					t.Fatal(err)
				}
				n += len(kvs)
			}
			return n
		}
		time.Sleep(55 * time.Minute)
		if n := count(); n != 4 {
			t.Errorf("%d keys are left before their time", n)
		}
		time.Sleep(5*time.Minute + sweepEvery)
		synctest.Wait()
		if n := count(); n != 0 {
			t.Errorf("%d keys are left after their time", n)
		}
		cancel()
		<-done
	})
}
