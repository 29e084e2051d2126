package identity

import (
	"fmt"

	"github.com/lockstep-dr/lockstep/api/rest"
	"github.com/lockstep-dr/lockstep/store"
)

func readDomain(o *rest.Object, d *Domain) {
	o.Only("id", "name", "description", "enabled", "tags", "options")
	if s := o.OptString("name"); s != nil {
		d.Name = *s
	}
	if s := o.OptString("description"); s != nil {
		if len(*s) > rest.MaxNameBytes {
			o.Fail(rest.BadRequest("description has more than %d bytes", rest.MaxNameBytes))
		}
		d.Description = *s
	}
	if o.Has("enabled") && !o.Null("enabled") {
		d.Enabled = o.NeedBool("enabled")
	}
	if o.Has("tags") && len(o.Strings("tags")) > 0 {
		o.Fail(rest.BadRequest("tags are not supported"))
	}
	if id := o.OptString("id"); id != nil && *id != d.ID {
		o.Fail(rest.BadRequest("the id of a domain is chosen by the server"))
	}
	noOptions(o)
	if o.Err() == nil {
		if err := checkName("domain", d.Name); err != nil {
			o.Fail(rest.BadRequest("%s", err.Error()))
		}
	}
}

func (s *Service) postDomain(r *rest.Request, t *Token) (any, error) {
	if err := s.manage(r, t, rootDomain); err != nil {
		return nil, err
	}
	o, err := bodyOf(r, "domain")
	if err != nil {
		return nil, err
	}
	d := Domain{ID: newID(), Enabled: true}
	if readDomain(o, &d); o.Err() != nil {
		return nil, o.Err()
	}
	err = create(r.Context(), s.cfg.Store, map[string]any{
		key("domains", d.ID): d, key("names", "domain", hexName(d.Name)): d.ID,
	})
	if err != nil {
		return nil, fmt.Errorf("create domain %s: %w", d.Name, err)
	}
	r.Made = d.ID
	return map[string]any{"domain": domainView(r, d)}, nil
}

func (s *Service) patchDomain(r *rest.Request, t *Token) (any, error) {
	if err := s.manage(r, t, rootDomain); err != nil {
		return nil, err
	}
	old, cmp, err := stored[Domain](r.Context(), s.cfg.Store, "domains", r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	o, err := bodyOf(r, "domain")
	if err != nil {
		return nil, err
	}
	d := old
	if readDomain(o, &d); o.Err() != nil {
		return nil, o.Err()
	}
	if d.ID == rootDomain && !d.Enabled {
		return nil, rest.Forbidden("the domain %s cannot be disabled: its administrators manage everything", rootDomain)
	}
	cmps, ops := rename(key("names", "domain", hexName(old.Name)), key("names", "domain", hexName(d.Name)), d.ID)
	err = s.commit(r.Context(), append(cmps, cmp), append(ops, store.Op{Key: cmp.Key, Value: store.Encode(d)}))
	if err != nil {
		return nil, fmt.Errorf("change domain %s: %w", d.ID, err)
	}
	return map[string]any{"domain": domainView(r, d)}, nil
}

// deleteDomain deletes a domain that is disabled, as Keystone asks for, and has no users and projects.
func (s *Service) deleteDomain(r *rest.Request, t *Token) (any, error) {
	if err := s.manage(r, t, rootDomain); err != nil {
		return nil, err
	}
	d, cmp, err := stored[Domain](r.Context(), s.cfg.Store, "domains", r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	if d.Enabled || d.ID == rootDomain {
		return nil, rest.Forbidden("the domain is enabled; disable it first (the domain %s always is)", rootDomain)
	}
	for _, kind := range []string{"user", "project"} {
		kvs, _, err := s.cfg.Store.List(r.Context(), key("names", kind, d.ID)+"/")
		if err != nil {
			return nil, fmt.Errorf("list %ss of domain %s: %w", kind, d.ID, err)
		}
		if len(kvs) > 0 {
			return nil, fmt.Errorf("domain %s has %d %ss; delete them first: %w", d.Name, len(kvs), kind, ErrInUse)
		}
	}
	err = s.commit(r.Context(), []store.Cmp{cmp}, []store.Op{
		{Key: cmp.Key, Delete: true}, {Key: key("names", "domain", hexName(d.Name)), Delete: true},
	})
	if err != nil {
		return nil, fmt.Errorf("delete domain %s: %w", d.ID, err)
	}
	return nil, nil
}
