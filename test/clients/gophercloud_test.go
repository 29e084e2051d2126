package clients

import (
	"context"
	"net/http"
	"testing"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack"
	"github.com/gophercloud/gophercloud/v2/openstack/blockstorage/v3/availabilityzones"
	"github.com/gophercloud/gophercloud/v2/openstack/blockstorage/v3/volumes"
	"github.com/gophercloud/gophercloud/v2/openstack/blockstorage/v3/volumetypes"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/catalog"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/projects"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/tokens"
	"github.com/gophercloud/gophercloud/v2/pagination"
)

func (d *deployment) gophercloudAuth() gophercloud.AuthOptions {
	return gophercloud.AuthOptions{
		IdentityEndpoint: d.env["OS_AUTH_URL"], Username: d.env["OS_USERNAME"], Password: d.env["OS_PASSWORD"],
		DomainName: d.env["OS_USER_DOMAIN_NAME"], TenantID: d.env["OS_PROJECT_ID"], AllowReauth: true,
	}
}

// TestGophercloudIdentity logs in in every way that the SDK has for a user with a password.
func TestGophercloudIdentity(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	ctx, auth := d.ctx, d.gophercloudAuth()
	region, project := d.env["OS_REGION_NAME"], d.env["OS_PROJECT_ID"]
	provider := must[*gophercloud.ProviderClient](t)(openstack.AuthenticatedClient(ctx, auth))
	ident := must[*gophercloud.ServiceClient](t)(openstack.NewIdentityV3(provider, gophercloud.EndpointOpts{Region: region}))

	result := tokens.Get(ctx, ident, provider.TokenID)
	if token := must[*tokens.Token](t)(result.Extract()); token.ExpiresAt.IsZero() {
		t.Errorf("token: %+v", token)
	}
	if p := must[*tokens.Project](t)(result.ExtractProject()); p.ID != project || p.Name != d.env["OS_PROJECT_NAME"] {
		t.Errorf("project of the token: %+v", p)
	}
	roles := must[[]tokens.Role](t)(result.ExtractRoles())
	if len(roles) == 0 {
		t.Error("the first user has no role")
	}

	page, err := catalog.List(ident).AllPages(ctx)
	ok(t, err)
	kinds := map[string]int{}
	for _, e := range must[[]tokens.CatalogEntry](t)(catalog.ExtractServiceCatalog(page)) {
		for _, ep := range e.Endpoints {
			if ep.Interface == "public" && ep.Region == region {
				kinds[e.Type]++
			}
		}
	}
	for _, kind := range []string{"identity", "volumev2", "volumev3", "compute", "image"} {
		if kinds[kind] != 1 {
			t.Errorf("%d public endpoints of type %s", kinds[kind], kind)
		}
	}

	page, err = projects.ListAvailable(ident).AllPages(ctx)
	ok(t, err)
	if ps := must[[]projects.Project](t)(projects.ExtractProjects(page)); len(ps) != 1 || ps[0].ID != project {
		t.Errorf("projects: %+v", ps)
	}
	if p := must[*projects.Project](t)(projects.Get(ctx, ident, project).Extract()); !p.Enabled {
		t.Errorf("project: %+v", p)
	}

	// One token from another: for a project by id and by name, for the domain, and for nothing.
	unscoped := must[*gophercloud.ProviderClient](t)(openstack.AuthenticatedClient(ctx, gophercloud.AuthOptions{
		IdentityEndpoint: auth.IdentityEndpoint, Username: auth.Username, Password: auth.Password, DomainID: "default", Scope: &gophercloud.AuthScope{},
	}))
	for name, scope := range map[string]*gophercloud.AuthScope{
		"project id":   {ProjectID: project},
		"project name": {ProjectName: d.env["OS_PROJECT_NAME"], DomainName: d.env["OS_PROJECT_DOMAIN_NAME"]},
		"domain":       {DomainName: d.env["OS_PROJECT_DOMAIN_NAME"]},
	} {
		p, err := openstack.AuthenticatedClient(ctx, gophercloud.AuthOptions{IdentityEndpoint: auth.IdentityEndpoint, TokenID: unscoped.TokenID, Scope: scope})
		if err != nil {
			t.Errorf("token for the %s: %v", name, err)
			continue
		}
		sc, err := openstack.NewBlockStorageV3(p, gophercloud.EndpointOpts{Region: region})
		if name == "domain" {
			if err == nil {
				t.Error("a token for the domain has an endpoint for disks")
			}
			continue
		}
		ok(t, err)
		if _, err := volumes.List(sc, nil).AllPages(ctx); err != nil {
			t.Errorf("with a token for the %s: %v", name, err)
		}
	}
	for name, o := range map[string]gophercloud.AuthOptions{
		"password": {Username: auth.Username, Password: "wrong", DomainID: "default"},
		"user":     {Username: "nobody", Password: auth.Password, DomainID: "default"},
		"project":  {Username: auth.Username, Password: auth.Password, DomainID: "default", TenantID: "0123"},
		"token":    {TokenID: "wrong", Scope: &gophercloud.AuthScope{ProjectID: project}},
	} {
		o.IdentityEndpoint = auth.IdentityEndpoint
		if _, err := openstack.AuthenticatedClient(ctx, o); !gophercloud.ResponseCodeIs(err, http.StatusUnauthorized) {
			t.Errorf("wrong %s: %v", name, err)
		}
	}
	sc := must[*gophercloud.ServiceClient](t)(openstack.NewBlockStorageV3(provider, gophercloud.EndpointOpts{Region: region}))
	old := provider.TokenID
	ok(t, tokens.Revoke(ctx, ident, old).Err)
	_, err = volumes.List(sc, nil).AllPages(ctx) // logs in again by itself
	ok(t, err)
	if provider.TokenID == old {
		t.Error("a revoked token still works")
	}
}

// TestGophercloudVolumes are the block storage calls of version 3.
func TestGophercloudVolumes(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	ctx := d.ctx
	provider := must[*gophercloud.ProviderClient](t)(openstack.AuthenticatedClient(ctx, d.gophercloudAuth()))
	sc := must[*gophercloud.ServiceClient](t)(openstack.NewBlockStorageV3(provider, gophercloud.EndpointOpts{Region: d.env["OS_REGION_NAME"]}))
	get := func(id string) *volumes.Volume {
		t.Helper()
		return must[*volumes.Volume](t)(volumes.Get(ctx, sc, id).Extract())
	}
	look := func(id string) func() (string, error) {
		return func() (string, error) {
			v, err := volumes.Get(ctx, sc, id).Extract()
			if gophercloud.ResponseCodeIs(err, http.StatusNotFound) {
				return gone, nil
			}
			if err != nil {
				return "", err
			}
			return v.Status, nil
		}
	}
	create := func(o volumes.CreateOpts) string {
		t.Helper()
		v := must[*volumes.Volume](t)(volumes.Create(ctx, sc, o, nil).Extract())
		settle(t, "volume "+o.Name, []string{"creating"}, "available", look(v.ID))
		return v.ID
	}
	ids := []string{
		create(volumes.CreateOpts{Size: 1, Name: "a", AvailabilityZone: "az1", VolumeType: "SSD", Description: "d", Metadata: map[string]string{"k": "v"}}),
		create(volumes.CreateOpts{Size: 1, Name: "b", AvailabilityZone: "az2"}),
		create(volumes.CreateOpts{Size: 1, Name: "c"}),
	}
	a := ids[0]
	if v := get(a); v.Name != "a" || v.Description != "d" || v.Metadata["k"] != "v" || v.AvailabilityZone != "az1" || v.VolumeType != "SSD" || v.CreatedAt.IsZero() || v.ReplicationStatus != "disabled" {
		t.Errorf("volume: %+v", v)
	}

	// One by one, as pages; the last one has no next.
	var names []string
	pages := 0
	ok(t, volumes.List(sc, volumes.ListOpts{Limit: 1, Sort: "name:asc"}).EachPage(ctx, func(_ context.Context, page pagination.Page) (bool, error) {
		pages++
		list, err := volumes.ExtractVolumes(page)
		for _, v := range list {
			names = append(names, v.Name)
		}
		return true, err
	}))
	if len(names) != 3 || names[0] != "a" || names[2] != "c" || pages < 3 {
		t.Errorf("%d pages with %v", pages, names)
	}
	for _, o := range []volumes.ListOpts{{Name: "b"}, {Status: "available", Name: "b"}, {Sort: "name:asc", Limit: 1, Marker: a}} {
		page, err := volumes.List(sc, o).AllPages(ctx)
		ok(t, err)
		if list := must[[]volumes.Volume](t)(volumes.ExtractVolumes(page)); len(list) == 0 || list[0].Name != "b" {
			t.Errorf("list %+v: %+v", o, list)
		}
	}

	name, description := "renamed", ""
	must[*volumes.Volume](t)(volumes.Update(ctx, sc, a, volumes.UpdateOpts{Name: &name, Description: &description, Metadata: map[string]string{"x": "y"}}).Extract())
	if v := get(a); v.Name != name || v.Description != "" || v.Metadata["x"] != "y" {
		t.Errorf("updated: %+v", v)
	}
	// Metadata calls that the SDK has no function for.
	var meta struct {
		Metadata map[string]string `json:"metadata"`
	}
	_, err := sc.Post(ctx, sc.ServiceURL("volumes", a, "metadata"), map[string]any{"metadata": map[string]string{"more": "1"}}, &meta, &gophercloud.RequestOpts{OkCodes: []int{200}})
	ok(t, err)
	if meta.Metadata["more"] != "1" || meta.Metadata["x"] != "y" {
		t.Errorf("metadata after a post: %v", meta.Metadata)
	}
	_, err = sc.Delete(ctx, sc.ServiceURL("volumes", a, "metadata", "more"), &gophercloud.RequestOpts{OkCodes: []int{200}})
	ok(t, err)
	_, err = sc.Put(ctx, sc.ServiceURL("volumes", a, "metadata"), map[string]any{"metadata": map[string]string{"only": "1"}}, &meta, &gophercloud.RequestOpts{OkCodes: []int{200}})
	ok(t, err)
	if v := get(a); len(v.Metadata) != 1 || v.Metadata["only"] != "1" {
		t.Errorf("metadata in the end: %v", v.Metadata)
	}

	ok(t, volumes.ExtendSize(ctx, sc, a, volumes.ExtendSizeOpts{NewSize: 2}).ExtractErr())
	settle(t, "extend", []string{"extending"}, "available", look(a))
	if v := get(a); v.Size != 2 {
		t.Errorf("grown volume has %d GiB", v.Size)
	}
	if err := volumes.ExtendSize(ctx, sc, a, volumes.ExtendSizeOpts{NewSize: 1}).ExtractErr(); !gophercloud.ResponseCodeIs(err, http.StatusBadRequest) {
		t.Errorf("shrink: %v", err)
	}

	ok(t, volumes.Reserve(ctx, sc, a).ExtractErr())
	ok(t, volumes.Unreserve(ctx, sc, a).ExtractErr())
	ok(t, volumes.Reserve(ctx, sc, a).ExtractErr())
	info := must[map[string]any](t)(volumes.InitializeConnection(ctx, sc, a, volumes.InitializeConnectionOpts{Host: "h"}).Extract())
	if info["driver_volume_type"] != "nbd" {
		t.Errorf("connection: %v", info)
	}
	ok(t, volumes.Attach(ctx, sc, a, volumes.AttachOpts{InstanceUUID: "server", MountPoint: "/dev/vdb", Mode: volumes.ReadWrite}).ExtractErr())
	if v := get(a); v.Status != "in-use" || len(v.Attachments) != 1 || v.Attachments[0].ServerID != "server" {
		t.Errorf("attached: %+v", v)
	}
	if err := volumes.Delete(ctx, sc, a, nil).ExtractErr(); !gophercloud.ResponseCodeIs(err, http.StatusBadRequest) {
		t.Errorf("delete of an attached volume: %v", err)
	}
	ok(t, volumes.BeginDetaching(ctx, sc, a).ExtractErr())
	ok(t, volumes.TerminateConnection(ctx, sc, a, volumes.TerminateConnectionOpts{Host: "h"}).ExtractErr())
	ok(t, volumes.Detach(ctx, sc, a, volumes.DetachOpts{AttachmentID: get(a).Attachments[0].AttachmentID}).ExtractErr())
	if v := get(a); v.Status != "available" || len(v.Attachments) != 0 {
		t.Errorf("detached: %+v", v)
	}

	page, err := volumetypes.List(sc, nil).AllPages(ctx)
	ok(t, err)
	types := must[[]volumetypes.VolumeType](t)(volumetypes.ExtractVolumeTypes(page))
	if len(types) == 0 {
		t.Fatal("no volume types")
	}
	for _, vt := range types {
		if got := must[*volumetypes.VolumeType](t)(volumetypes.Get(ctx, sc, vt.ID).Extract()); got.Name != vt.Name {
			t.Errorf("type %s: %+v", vt.ID, got)
		}
	}
	page, err = availabilityzones.List(sc).AllPages(ctx)
	ok(t, err)
	if zones := must[[]availabilityzones.AvailabilityZone](t)(availabilityzones.ExtractAvailabilityZones(page)); len(zones) != 2 || zones[0].ZoneName != "az1" || !zones[1].ZoneState.Available {
		t.Errorf("zones: %+v", zones)
	}
	for _, id := range ids {
		ok(t, volumes.Delete(ctx, sc, id, volumes.DeleteOpts{Cascade: true}).ExtractErr())
		settle(t, "delete", []string{"available", "deleting"}, gone, look(id))
	}
}
