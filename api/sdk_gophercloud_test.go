package api_test

import (
	"net/http"
	"testing"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack"
	"github.com/gophercloud/gophercloud/v2/openstack/blockstorage/v3/availabilityzones"
	"github.com/gophercloud/gophercloud/v2/openstack/blockstorage/v3/limits"
	"github.com/gophercloud/gophercloud/v2/openstack/blockstorage/v3/quotasets"
	"github.com/gophercloud/gophercloud/v2/openstack/blockstorage/v3/volumes"
	"github.com/gophercloud/gophercloud/v2/openstack/blockstorage/v3/volumetypes"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/catalog"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/projects"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/tokens"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/users"
	"github.com/gophercloud/gophercloud/v2/openstack/image/v2/images"
	"github.com/gophercloud/gophercloud/v2/openstack/utils"
)

// TestGophercloud drives identity v3 and block storage v3 with OpenStack's Go SDK.
func TestGophercloud(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	opts := gophercloud.AuthOptions{
		IdentityEndpoint: r.srv.URL + "/identity", Username: "admin", Password: password, DomainName: "Default",
		TenantName: "p1", AllowReauth: true,
	}
	provider := must[*gophercloud.ProviderClient](t)(openstack.AuthenticatedClient(ctx, opts))

	// Identity.
	ident := must[*gophercloud.ServiceClient](t)(openstack.NewIdentityV3(provider, gophercloud.EndpointOpts{Region: region}))
	result := tokens.Get(ctx, ident, provider.TokenID)
	tok := must[*tokens.Token](t)(result.Extract())
	if tok.ExpiresAt.IsZero() {
		t.Errorf("token: %+v", tok)
	}
	if p := must[*tokens.Project](t)(result.ExtractProject()); p.ID != r.project || p.Domain.Name != "Default" {
		t.Errorf("project of the token: %+v", p)
	}
	if valid := must[bool](t)(tokens.Validate(ctx, ident, provider.TokenID)); !valid {
		t.Error("the token is not valid")
	}
	page, err := catalog.List(ident).AllPages(ctx)
	ok(t, err)
	if entries := must[[]tokens.CatalogEntry](t)(catalog.ExtractServiceCatalog(page)); len(entries) != 5 {
		t.Errorf("catalog: %+v", entries)
	}
	// Clients look for the image service before they make a disk that has nothing to do with it.
	image := must[*gophercloud.ServiceClient](t)(openstack.NewImageV2(provider, gophercloud.EndpointOpts{Region: region}))
	if vs := must[[]utils.SupportedVersion](t)(utils.GetServiceVersions(ctx, provider, image.Endpoint, true)); len(vs) != 1 || vs[0].Major != 2 {
		t.Errorf("versions of the image service: %+v", vs)
	}
	if _, err := images.Get(ctx, image, "x").Extract(); !gophercloud.ResponseCodeIs(err, http.StatusNotFound) {
		t.Errorf("an image: %v", err)
	}
	page, err = projects.List(ident, projects.ListOpts{Name: "p1"}).AllPages(ctx)
	ok(t, err)
	if ps := must[[]projects.Project](t)(projects.ExtractProjects(page)); len(ps) != 1 || ps[0].ID != r.project {
		t.Errorf("projects: %+v", ps)
	}
	page, err = projects.ListAvailable(ident).AllPages(ctx)
	ok(t, err)
	if ps := must[[]projects.Project](t)(projects.ExtractProjects(page)); len(ps) != 1 {
		t.Errorf("available projects: %+v", ps)
	}
	must[*projects.Project](t)(projects.Get(ctx, ident, r.project).Extract())
	must[*users.User](t)(users.Get(ctx, ident, r.boot.UserID).Extract())
	page, err = users.ListProjects(ident, r.boot.UserID).AllPages(ctx)
	ok(t, err)
	if ps := must[[]projects.Project](t)(projects.ExtractProjects(page)); len(ps) != 1 {
		t.Errorf("projects of the user: %+v", ps)
	}

	// A token from a token, for the domain, without a scope, and passed through.
	for name, o := range map[string]gophercloud.AuthOptions{
		"project":  {TokenID: provider.TokenID, Scope: &gophercloud.AuthScope{ProjectID: r.project}},
		"domain":   {TokenID: provider.TokenID, Scope: &gophercloud.AuthScope{DomainName: "Default"}},
		"as it is": {TokenID: provider.TokenID},
		"unscoped": {Username: "admin", Password: password, DomainID: "default", Scope: &gophercloud.AuthScope{}},
	} {
		o.IdentityEndpoint = opts.IdentityEndpoint
		if _, err := openstack.AuthenticatedClient(ctx, o); err != nil {
			t.Errorf("login %s: %v", name, err)
		}
	}
	wrong := opts
	wrong.Password = "wrong"
	if _, err := openstack.AuthenticatedClient(ctx, wrong); !gophercloud.ResponseCodeIs(err, http.StatusUnauthorized) {
		t.Errorf("wrong password: %v", err)
	}

	// Block storage.
	sc := must[*gophercloud.ServiceClient](t)(openstack.NewBlockStorageV3(provider, gophercloud.EndpointOpts{Region: region}))
	if sc.Endpoint != r.srv.URL+"/v3/"+r.project+"/" {
		t.Errorf("endpoint is %s", sc.Endpoint)
	}
	versions := must[[]utils.SupportedVersion](t)(utils.GetServiceVersions(ctx, provider, r.srv.URL+"/v3/", true))
	if len(versions) != 1 || versions[0].MaxMajor != 3 || versions[0].MaxMinor != 0 {
		t.Errorf("versions: %+v", versions)
	}
	v := must[*volumes.Volume](t)(volumes.Create(ctx, sc, volumes.CreateOpts{Size: 3, Name: "v", AvailabilityZone: "az1", Metadata: map[string]string{"a": "b"}}, nil).Extract())
	must[*volumes.Volume](t)(volumes.Create(ctx, sc, volumes.CreateOpts{Size: 3, Name: "w"}, nil).Extract())
	if v.Size != 3 || v.TenantID != r.project || v.UserID != r.boot.UserID || v.CreatedAt.IsZero() || v.Metadata["a"] != "b" {
		t.Errorf("volume: %+v", v)
	}
	page, err = volumes.List(sc, volumes.ListOpts{Limit: 1, Sort: "name:asc"}).AllPages(ctx)
	ok(t, err)
	if all := must[[]volumes.Volume](t)(volumes.ExtractVolumes(page)); len(all) != 2 || all[0].Name != "v" || all[1].Name != "w" {
		t.Errorf("volumes: %+v", all)
	}
	name := "v2"
	if u := must[*volumes.Volume](t)(volumes.Update(ctx, sc, v.ID, volumes.UpdateOpts{Name: &name}).Extract()); u.Name != "v2" || u.UpdatedAt.IsZero() {
		t.Errorf("updated: %+v", u)
	}
	ok(t, volumes.ExtendSize(ctx, sc, v.ID, volumes.ExtendSizeOpts{NewSize: 4}).ExtractErr())
	ok(t, volumes.Reserve(ctx, sc, v.ID).ExtractErr())
	ok(t, volumes.Unreserve(ctx, sc, v.ID).ExtractErr())
	ok(t, volumes.Attach(ctx, sc, v.ID, volumes.AttachOpts{InstanceUUID: "server", MountPoint: "/dev/vdb", Mode: volumes.ReadWrite}).ExtractErr())
	info := must[map[string]any](t)(volumes.InitializeConnection(ctx, sc, v.ID, volumes.InitializeConnectionOpts{Host: "h"}).Extract())
	if info["driver_volume_type"] != "nbd" {
		t.Errorf("connection: %v", info)
	}
	ok(t, volumes.BeginDetaching(ctx, sc, v.ID).ExtractErr())
	ok(t, volumes.TerminateConnection(ctx, sc, v.ID, volumes.TerminateConnectionOpts{Host: "h"}).ExtractErr())
	ok(t, volumes.Detach(ctx, sc, v.ID, volumes.DetachOpts{}).ExtractErr())
	ok(t, volumes.SetBootable(ctx, sc, v.ID, volumes.BootableOpts{Bootable: true}).ExtractErr())
	got := must[*volumes.Volume](t)(volumes.Get(ctx, sc, v.ID).Extract())
	if got.Status != "available" || got.Size != 4 || got.Bootable != "true" || len(got.Attachments) != 0 {
		t.Errorf("volume after all that: %+v", got)
	}
	page, err = volumetypes.List(sc, volumetypes.ListOpts{}).AllPages(ctx)
	ok(t, err)
	if ts := must[[]volumetypes.VolumeType](t)(volumetypes.ExtractVolumeTypes(page)); len(ts) != 2 {
		t.Errorf("types: %+v", ts)
	}
	must[*volumetypes.VolumeType](t)(volumetypes.Get(ctx, sc, "t1").Extract())
	page, err = availabilityzones.List(sc).AllPages(ctx)
	ok(t, err)
	if zs := must[[]availabilityzones.AvailabilityZone](t)(availabilityzones.ExtractAvailabilityZones(page)); len(zs) != 2 || !zs[0].ZoneState.Available {
		t.Errorf("zones: %+v", zs)
	}
	if l := must[*limits.Limits](t)(limits.Get(ctx, sc).Extract()); l.Absolute.TotalVolumesUsed != 2 || l.Absolute.MaxTotalVolumes != -1 {
		t.Errorf("limits: %+v", l)
	}
	if q := must[quotasets.QuotaUsageSet](t)(quotasets.GetUsage(ctx, sc, r.project).Extract()); q.Volumes.InUse != 2 || q.Volumes.Limit != -1 {
		t.Errorf("quota: %+v", q)
	}
	must[*quotasets.QuotaSet](t)(quotasets.Get(ctx, sc, r.project).Extract())
	must[*quotasets.QuotaSet](t)(quotasets.GetDefaults(ctx, sc, r.project).Extract())
	ok(t, volumes.Delete(ctx, sc, v.ID, volumes.DeleteOpts{Cascade: true}).ExtractErr())
	if _, err := volumes.Get(ctx, sc, v.ID).Extract(); !gophercloud.ResponseCodeIs(err, http.StatusNotFound) {
		t.Errorf("deleted volume: %v", err)
	}
	sc.Microversion = "3.59"
	if _, err := volumes.Get(ctx, sc, v.ID).Extract(); !gophercloud.ResponseCodeIs(err, http.StatusNotAcceptable) {
		t.Errorf("a microversion that is not spoken: %v", err)
	}
	sc.Microversion = ""

	ok(t, tokens.Revoke(ctx, ident, provider.TokenID).Err)
	_, err = volumes.List(sc, nil).AllPages(ctx) // logs in again by itself
	ok(t, err)
}
