package identity

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/lockstep-dr/lockstep/store"
	"github.com/lockstep-dr/lockstep/store/memstore"
)

// old makes of a store one that a version with two roles has left, with assignments of many users, and returns what
// each record should hold afterwards.
func old(t *testing.T, st store.Store, b Bootstrapped, users int) map[string]string {
	t.Helper()
	want := map[string]string{}
	put := func(k string, v any) {
		t.Helper()
		if _, _, err := st.Txn(t.Context(), nil, []store.Op{{Key: k, Value: store.Encode(v)}}); err != nil {
			t.Fatal(err)
		}
	}
	role := func(user, project, domain, roles, then string) {
		k := key("roles", user, project+domain)
		put(k, Assignment{User: user, Project: project, Domain: domain, Roles: strings.Fields(roles)})
		want[k] = then
	}
	cred := func(user, id, roles, then string) {
		put(key("appcreds", user, id), AppCred{ID: id, Name: id, User: user, Project: b.ProjectID, Roles: strings.Fields(roles)})
		want[key("appcreds", user, id)] = then
	}
	role(b.UserID, b.ProjectID, "", "admin member", "admin member operator")
	role(b.UserID, "", b.DomainID, "admin member", "admin member")
	for i := range users {
		m, a := fmt.Sprintf("m%d", i), fmt.Sprintf("a%d", i)
		role(m, b.ProjectID, "", "member", "member operator")
		role(a, b.ProjectID, "", "admin", "admin")
		cred(m, "cm"+m, "member", "member operator")
		cred(a, "ca"+a, "admin", "admin")
	}
	if _, _, err := st.Txn(t.Context(), nil, []store.Op{{Key: key("roles_version"), Delete: true}}); err != nil {
		t.Fatal(err)
	}
	return want
}

func (w wanted) check(t *testing.T, st store.Store) {
	t.Helper()
	for k, roles := range w {
		var got []string
		var err error
		if strings.Contains(k, "appcreds") {
			var c AppCred
			c, _, err = get[AppCred](t.Context(), st, k)
			got = c.Roles
		} else {
			var a Assignment
			a, _, err = get[Assignment](t.Context(), st, k)
			got = a.Roles
		}
		if err != nil || strings.Join(got, " ") != roles {
			t.Errorf("%s: %v (%v), want %s", k, got, err, roles)
		}
	}
}

type wanted map[string]string

// TestUpgradeRoles: whoever had member on a project gets operator, credentials too, nobody else, and once: what is
// taken away or given later stays so. Any number of controllers may start at once.
func TestUpgradeRoles(t *testing.T) {
	st, s, b, _ := setup(t)
	want := wanted(old(t, st, b, 30))
	var wg sync.WaitGroup
	total := make([]int, 4)
	for i := range total {
		wg.Go(func() {
			again, err := Bootstrap(t.Context(), st, BootstrapConfig{})
			if err != nil || again.ProjectID != b.ProjectID {
				t.Errorf("start %d: %+v, %v", i, again, err)
			}
			total[i] = again.Upgraded
		})
	}
	wg.Wait()
	want.check(t, st)
	if sum := total[0] + total[1] + total[2] + total[3]; sum != 61 { // each record by one of them
		t.Errorf("%v records were changed", total)
	}
	u, err := s.CreateUser(t.Context(), "default", "late", "late")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Assign(t.Context(), Assignment{User: u.ID, Project: b.ProjectID, Roles: []string{RoleMember}}); err != nil {
		t.Fatal(err)
	}
	want[key("roles", u.ID, b.ProjectID)] = "member"
	rev := st.Rev()
	if again, err := Bootstrap(t.Context(), st, BootstrapConfig{}); err != nil || again.Upgraded != 0 || st.Rev() != rev {
		t.Errorf("a later start: %+v, %v, revision %d, was %d", again, err, st.Rev(), rev)
	}
	want.check(t, st)
}

// cutStore fails after some transactions, as for a controller that dies there.
type cutStore struct {
	store.Store
	left int
}

func (c *cutStore) Txn(ctx context.Context, cmps []store.Cmp, ops []store.Op) (bool, int64, error) {
	if c.left == 0 {
		return false, 0, context.DeadlineExceeded
	}
	c.left--
	return c.Store.Txn(ctx, cmps, ops)
}

// TestUpgradeCutOff: wherever an upgrade is cut off, the next one ends it.
func TestUpgradeCutOff(t *testing.T) {
	for left := range 6 {
		st := memstore.NewMem()
		b, err := Bootstrap(t.Context(), st, BootstrapConfig{Password: secret})
		if err != nil {
			t.Fatal(err)
		}
		want := wanted(old(t, st, b, 2))
		if _, err := Bootstrap(t.Context(), &cutStore{st, left}, BootstrapConfig{}); err == nil {
			t.Fatalf("after %d transactions nothing failed", left)
		}
		if _, err := Bootstrap(t.Context(), st, BootstrapConfig{}); err != nil {
			t.Fatal(err)
		}
		want.check(t, st)
		_ = st.Close()
	}
}

// rivalStore changes what a transaction is about just before it, some times.
type rivalStore struct {
	store.Store
	left int
}

func (r *rivalStore) Txn(ctx context.Context, cmps []store.Cmp, ops []store.Op) (bool, int64, error) {
	if kv, err := r.Get(ctx, ops[0].Key); r.left > 0 && err == nil {
		r.left--
		if _, _, err := r.Store.Txn(ctx, nil, []store.Op{{Key: kv.Key, Value: kv.Value}}); err != nil {
			return false, 0, err
		}
	}
	return r.Store.Txn(ctx, cmps, ops)
}

// TestUpgradeBesideOthers: what is changed meanwhile is looked at again, and never overwritten.
func TestUpgradeBesideOthers(t *testing.T) {
	st, _, b, _ := setup(t)
	want := wanted(old(t, st, b, 2))
	if _, err := Bootstrap(t.Context(), &rivalStore{st, 3}, BootstrapConfig{}); err != nil {
		t.Fatal(err)
	}
	want.check(t, st)
}

// TestNewerRoles: a build does not serve roles whose meaning it does not know.
func TestNewerRoles(t *testing.T) {
	st, _, _, _ := setup(t)
	if _, _, err := st.Txn(t.Context(), nil, []store.Op{{Key: key("roles_version"), Value: store.Encode(rolesVersion + 1)}}); err != nil {
		t.Fatal(err)
	}
	if _, err := Bootstrap(t.Context(), st, BootstrapConfig{}); err == nil || !strings.Contains(err.Error(), "newer build") {
		t.Errorf("%v", err)
	}
}
