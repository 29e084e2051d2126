package identity

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/store"
)

// rolesVersion is the meaning that the roles in the store have. 1, which no key tells: member may fail over.
// 2: that needs operator.
const rolesVersion = 2

// upgradeTries bounds the passes over what others change meanwhile.
const upgradeTries = 20

// upgradeRoles gives the role operator to whoever had member on a project, and to application credentials with
// member, when a controller of this version first starts on a store of an older one: they keep what they could do.
// It does so once, before that controller serves; any number may do it at once, and one that was cut off is gone on
// with by the next.
func upgradeRoles(ctx context.Context, st store.Store) (changed int, err error) {
	marker := key("roles_version")
	version, found, err := get[int](ctx, st, marker)
	switch {
	case err != nil:
		return 0, err
	case found && version > rolesVersion:
		return 0, fmt.Errorf("the roles in the store are of version %d, and this build knows %d: start a newer build", version, rolesVersion)
	case found:
		return 0, nil
	}
	for range upgradeTries {
		// Roles first: a credential holds no role that its user has not.
		err = upgradeAll(ctx, st, key("roles")+"/", &changed, func(a *Assignment) *[]string {
			if a.Project == "" {
				return nil // on a domain only admin means something
			}
			return &a.Roles
		})
		if err == nil {
			err = upgradeAll(ctx, st, key("appcreds")+"/", &changed, func(c *AppCred) *[]string { return &c.Roles })
		}
		if !errors.Is(err, lockstep.ErrConflict) {
			break
		}
	}
	if err != nil {
		return changed, fmt.Errorf("give the role %s to those with the role %s: %w", RoleOperator, RoleMember, err)
	}
	if err := create(ctx, st, map[string]any{marker: rolesVersion}); err != nil && !errors.Is(err, lockstep.ErrExists) {
		return changed, fmt.Errorf("note the version of the roles: %w", err)
	}
	return changed, nil
}

// upgradeAll changes the roles of all records below a prefix, and counts them. lockstep.ErrConflict: one was changed meanwhile.
func upgradeAll[T any](ctx context.Context, st store.Store, prefix string, changed *int, rolesOf func(*T) *[]string) error {
	kvs, _, err := st.List(ctx, prefix)
	if err != nil {
		return fmt.Errorf("list %s: %w", prefix, err)
	}
	for _, kv := range kvs {
		v, err := store.Decode[T](kv.Value)
		if err != nil {
			return fmt.Errorf("decode %s: %w", kv.Key, err)
		}
		roles := rolesOf(&v)
		if roles == nil || !slices.Contains(*roles, RoleMember) || slices.Contains(*roles, RoleOperator) {
			continue
		}
		*roles = append(*roles, RoleOperator)
		ok, _, err := st.Txn(ctx, []store.Cmp{{Key: kv.Key, ModRev: kv.ModRev}}, []store.Op{{Key: kv.Key, Value: store.Encode(v)}})
		if err != nil {
			return fmt.Errorf("change %s: %w", kv.Key, err)
		}
		if !ok {
			return lockstep.ErrConflict
		}
		*changed++
	}
	return nil
}
