package api_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/chnsz/golangsdk"
	"github.com/chnsz/golangsdk/openstack"
	"github.com/chnsz/golangsdk/openstack/blockstorage/extensions/volumeactions"
	volumes2 "github.com/chnsz/golangsdk/openstack/blockstorage/v2/volumes"
	volumes3 "github.com/chnsz/golangsdk/openstack/blockstorage/v3/volumes"
	groups "github.com/chnsz/golangsdk/openstack/drs/v2/replicationconsistencygroups"
	pairs "github.com/chnsz/golangsdk/openstack/drs/v2/replications"
	"github.com/chnsz/golangsdk/openstack/evs/v1/jobs"
	"github.com/chnsz/golangsdk/openstack/evs/v2/cloudvolumes"
)

func must[T any](t *testing.T) func(v T, err error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func vendorLogin(t *testing.T, r *rig, endpoint string, o golangsdk.AuthOptions) *golangsdk.ProviderClient {
	t.Helper()
	o.IdentityEndpoint = r.srv.URL + endpoint
	o.Username, o.Password = "admin", password
	return must[*golangsdk.ProviderClient](t)(openstack.AuthenticatedClient(o))
}

// TestVendorSDK drives every call of the family with the vendor's Go SDK: its strict success codes
// and decoders decide.
func TestVendorSDK(t *testing.T) {
	r := newRig(t)
	for _, endpoint := range []string{"/identity", "/identity/", "/identity/v3"} {
		vendorLogin(t, r, endpoint, golangsdk.AuthOptions{DomainName: "Default", TenantID: r.project})
		vendorLogin(t, r, endpoint, golangsdk.AuthOptions{DomainName: "Default", TenantName: "p1"})
	}
	if p := vendorLogin(t, r, "/identity/v3", golangsdk.AuthOptions{DomainName: "Default"}); p.ProjectID != "" {
		t.Errorf("a login for the domain has project %q", p.ProjectID)
	}
	provider := vendorLogin(t, r, "/identity/v3", golangsdk.AuthOptions{DomainName: "Default", TenantName: "p1", AllowReauth: true})
	if provider.ProjectID != r.project {
		t.Fatalf("project is %q", provider.ProjectID)
	}
	eo := golangsdk.EndpointOpts{Region: region}
	drs := must[*golangsdk.ServiceClient](t)(openstack.NewDRSServiceV2(provider, eo))
	evs := must[*golangsdk.ServiceClient](t)(openstack.NewBlockStorageV2(provider, eo))
	cinder := must[*golangsdk.ServiceClient](t)(openstack.NewBlockStorageV3(provider, eo))

	// Volumes.
	prod := must[*volumes3.Volume](t)(volumes3.Create(cinder, volumes3.CreateOpts{Size: 10, AvailabilityZone: "az1", Name: "prod", VolumeType: "ssd"}).Extract())
	dr := must[*volumes2.Volume](t)(volumes2.Create(evs, volumes2.CreateOpts{Size: 10, AvailabilityZone: "az2", Metadata: map[string]string{"a": "b"}}).Extract())
	got := must[*volumes2.Volume](t)(volumes2.Get(evs, prod.ID).Extract())
	if got.Size != 10 || got.Bootable != "false" || got.CreatedAt.IsZero() || !got.UpdatedAt.IsZero() || got.AvailabilityZone != "az1" {
		t.Errorf("volume: %+v", got)
	}
	if v := must[*volumes3.Volume](t)(volumes3.Update(cinder, prod.ID, volumes3.UpdateOpts{Name: "prod2"}).Extract()); v.Name != "prod2" {
		t.Errorf("updated volume: %+v", v)
	}
	page, err := volumes2.List(evs, volumes2.ListOpts{Limit: 1}).AllPages()
	ok(t, err)
	if all := must[[]volumes2.Volume](t)(volumes2.ExtractVolumes(page)); len(all) != 2 || all[0].ID != dr.ID || all[1].ID != prod.ID {
		t.Errorf("volumes over pages: %+v", all)
	}
	ok(t, volumeactions.Reserve(cinder, prod.ID).ExtractErr())
	info := must[map[string]interface{}](t)(volumeactions.InitializeConnection(cinder, prod.ID, volumeactions.InitializeConnectionOpts{Host: "h"}).Extract())
	if info["driver_volume_type"] != "nbd" {
		t.Errorf("connection: %v", info)
	}
	ok(t, volumeactions.Attach(cinder, prod.ID, volumeactions.AttachOpts{InstanceUUID: "server", MountPoint: "/dev/vdb", Mode: volumeactions.ReadWrite}).ExtractErr())
	attached := must[*volumes3.Volume](t)(volumes3.Get(cinder, prod.ID).Extract())
	if attached.Status != "in-use" || len(attached.Attachments) != 1 || attached.Attachments[0].ServerID != "server" || attached.Attachments[0].AttachedAt.IsZero() {
		t.Errorf("attached: %+v", attached)
	}
	ok(t, volumeactions.BeginDetaching(cinder, prod.ID).ExtractErr())
	ok(t, volumeactions.TerminateConnection(cinder, prod.ID, volumeactions.TerminateConnectionOpts{Host: "h"}).ExtractErr())
	ok(t, volumeactions.Detach(cinder, prod.ID, volumeactions.DetachOpts{AttachmentID: attached.Attachments[0].AttachmentID}).ExtractErr())
	ok(t, volumeactions.ExtendSize(cinder, prod.ID, volumeactions.ExtendSizeOpts{NewSize: 11}).ExtractErr())
	ok(t, volumeactions.ExtendSize(cinder, dr.ID, volumeactions.ExtendSizeOpts{NewSize: 11}).ExtractErr())

	// The vendor's volumes.
	job := must[*cloudvolumes.JobResponse](t)(cloudvolumes.Create(evs, cloudvolumes.CreateOpts{Volume: cloudvolumes.VolumeOpts{
		AvailabilityZone: "az1", VolumeType: "ssd", Name: "cloud", Size: 1,
	}}).Extract())
	v1 := *evs
	v1.ResourceBase = strings.Replace(evs.ResourceBaseURL(), "/v2/", "/v1/", 1)
	done := must[*jobs.Job](t)(jobs.GetJobDetails(&v1, job.JobID).ExtractJob())
	if done.Status != "SUCCESS" || done.Entities.VolumeID != job.VolumeIDs[0] {
		t.Errorf("job: %+v", done)
	}
	must[*cloudvolumes.JobResponse](t)(cloudvolumes.ExtendSize(evs, job.VolumeIDs[0], cloudvolumes.ExtendOpts{SizeOpts: cloudvolumes.ExtendSizeOpts{NewSize: 2}}).Extract())
	cloud := must[*cloudvolumes.Volume](t)(cloudvolumes.Get(evs, job.VolumeIDs[0]).Extract())
	if cloud.Size != 2 || cloud.Name != "cloud" || cloud.ServiceType != "EVS" {
		t.Errorf("cloud volume: %+v", cloud)
	}
	must[*cloudvolumes.Volume](t)(cloudvolumes.Update(evs, cloud.ID, cloudvolumes.UpdateOpts{Name: "cloud2"}).Extract())
	if some := must[[]cloudvolumes.Volume](t)(cloudvolumes.ListPage(evs, cloudvolumes.ListOpts{Name: "cloud2"})); len(some) != 1 {
		t.Errorf("cloud volumes: %+v", some)
	}
	ok(t, cloudvolumes.Delete(evs, cloud.ID, cloudvolumes.DeleteOpts{}).ExtractErr())

	// Pairs.
	pc := must[*pairs.ReplicationCreate](t)(pairs.Create(drs, pairs.CreateOps{
		Name: "p", VolumeIDs: []string{prod.ID, dr.ID}, PriorityStation: "az1", ReplicationModel: "hypermetro",
	}).Extract())
	p := must[*pairs.Replication](t)(pairs.Get(drs, pc.ID).Extract())
	if p.VolumeIDs != prod.ID+","+dr.ID || p.ReplicationModel != "hypermetro" || p.FaultLevel != "0" || p.UpdatedAt != "" ||
		!strings.HasPrefix(string(p.RecordMetadata), `"{`) {
		t.Errorf("pair: %+v", p)
	}
	list := func(o pairs.ListOpts) []pairs.Replication {
		t.Helper()
		page, err := pairs.List(drs, o).AllPages()
		ok(t, err)
		return must[[]pairs.Replication](t)(pairs.ExtractReplications(page))
	}
	for _, o := range []pairs.ListOpts{
		{},
		{Name: "p"},
		{VolumeID: dr.ID},
		{VolumeIDs: dr.ID + ", " + prod.ID},
		{Status: "available", PriorityStation: "az1"},
		{SortKey: "name", SortDir: "asc", Limit: 1},
		{ChangesSince: "2017-09-28T05:08:32"},
	} {
		if got := list(o); len(got) != 1 || got[0].ID != p.ID {
			t.Errorf("list %+v: %+v", o, got)
		}
	}
	for _, o := range []pairs.ListOpts{
		{Name: "q"},
		{VolumeID: "x"},
		{VolumeIDs: dr.ID},
		{Status: "error"},
		{PriorityStation: "az2"},
		{Marker: p.ID},
		{Offset: 1},
		{ReplicationConsistencyGroupID: "x"},
		{ChangesSince: "2099-01-01T00:00:00"},
	} {
		if got := list(o); len(got) != 0 {
			t.Errorf("list %+v: %+v", o, got)
		}
	}

	// Groups, in the order of the Terraform provider, then the disaster.
	gc := must[*groups.ReplicationConsistencyGroupCreateorUpdate](t)(groups.Create(drs, groups.CreateOps{
		Name: "g", ReplicationIDs: []string{p.ID}, PriorityStation: "az1", ReplicationModel: "hypermetro",
	}).Extract())
	ok(t, groups.Sync(drs, gc.ID).ExtractErr())
	g := must[*groups.ReplicationConsistencyGroup](t)(groups.Get(drs, gc.ID).Extract())
	if g.ReplicationStatus != "active" || len(g.ReplicationIDs) != 1 || g.Name != "g" {
		t.Errorf("group: %+v", g)
	}
	ok(t, groups.Extend(drs, gc.ID, groups.ReplicationsOps{ID: p.ID, NewSize: 20}).ExtractErr())
	ok(t, groups.Reverse(drs, gc.ID).ExtractErr())
	ok(t, groups.FailOver(drs, gc.ID).ExtractErr())
	var conflict golangsdk.ErrUnexpectedResponseCode
	if err := groups.FailOver(drs, gc.ID).ExtractErr(); !errors.As(err, &conflict) || conflict.Actual != 409 {
		t.Errorf("repeated failover: %v", err)
	}
	if g := must[*groups.ReplicationConsistencyGroup](t)(groups.Get(drs, gc.ID).Extract()); g.Status != "failovered" || g.PriorityStation != "az2" {
		t.Errorf("failed over: %+v", g)
	}
	ok(t, groups.Reprotect(drs, gc.ID).ExtractErr())
	ok(t, groups.Stop(drs, gc.ID).ExtractErr())
	if want := "extend " + p.ID + "=20"; r.svc.acts[1] != want {
		t.Errorf("extend reached the service as %q, want %q", r.svc.acts[1], want)
	}
	u := must[*groups.ReplicationConsistencyGroupCreateorUpdate](t)(groups.Update(drs, gc.ID, groups.UpdateOpts{}).Extract())
	if u.Status != "updating" {
		t.Errorf("empty update: %+v", u)
	}
	must[*groups.ReplicationConsistencyGroupCreateorUpdate](t)(groups.Update(drs, gc.ID, groups.UpdateOpts{RemoveReplicationIDs: []string{p.ID}}).Extract())
	must[*groups.ReplicationConsistencyGroupCreateorUpdate](t)(groups.Update(drs, gc.ID, groups.UpdateOpts{AddReplicationIDs: []string{p.ID}}).Extract())
	gp, err := groups.List(drs, groups.ListOpts{VolumeID: prod.ID, Limit: 5, SortKey: "updated_at"}).AllPages()
	ok(t, err)
	if all := must[[]groups.ReplicationConsistencyGroup](t)(groups.ExtractReplicationConsistencyGroups(gp)); len(all) != 1 || all[0].ID != gc.ID {
		t.Errorf("groups: %+v", all)
	}
	if v := must[*volumes3.Volume](t)(volumes3.Get(cinder, prod.ID).Extract()); v.ReplicationStatus == "" || v.ReplicationStatus == "disabled" {
		t.Errorf("replication_status of a volume in a pair is %q", v.ReplicationStatus)
	}
	must[*groups.ReplicationConsistencyGroupCreateorUpdate](t)(groups.Update(drs, gc.ID, groups.UpdateOpts{RemoveReplicationIDs: []string{p.ID}}).Extract())
	ok(t, groups.Delete(drs, gc.ID).ExtractErr())
	var gone golangsdk.ErrDefault404
	if err := groups.Get(drs, gc.ID).Err; !errors.As(err, &gone) {
		t.Errorf("deleted group: %v", err)
	}
	ok(t, pairs.Delete(drs, p.ID).ExtractErr())
	if err := pairs.Get(drs, p.ID).Err; !errors.As(err, &gone) {
		t.Errorf("deleted pair: %v", err)
	}
	ok(t, volumes2.Delete(evs, dr.ID, volumes2.DeleteOpts{Cascade: true}).ExtractErr())
	ok(t, volumes3.Delete(cinder, prod.ID).ExtractErr())

	// A revoked token makes the SDK log in again by itself.
	if err := r.users.Revoke(t.Context(), provider.TokenID); err != nil {
		t.Fatal(err)
	}
	_, err = pairs.List(drs, pairs.ListOpts{}).AllPages()
	ok(t, err)
}
