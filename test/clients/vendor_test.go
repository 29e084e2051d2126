package clients

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/chnsz/golangsdk"
	"github.com/chnsz/golangsdk/openstack"
	"github.com/chnsz/golangsdk/openstack/blockstorage/extensions/volumeactions"
	volumes3 "github.com/chnsz/golangsdk/openstack/blockstorage/v3/volumes"
	groups "github.com/chnsz/golangsdk/openstack/drs/v2/replicationconsistencygroups"
	pairs "github.com/chnsz/golangsdk/openstack/drs/v2/replications"
	"github.com/chnsz/golangsdk/openstack/evs/v1/jobs"
	"github.com/chnsz/golangsdk/openstack/evs/v2/cloudvolumes"
)

// vendor is the vendor's Go SDK, logged in with what the openrc says.
type vendor struct {
	*deployment
	drs, evs, cinder, jobs *golangsdk.ServiceClient
}

func (d *deployment) vendor() *vendor {
	d.t.Helper()
	provider := must[*golangsdk.ProviderClient](d.t)(openstack.AuthenticatedClient(golangsdk.AuthOptions{
		IdentityEndpoint: d.env["OS_AUTH_URL"], Username: d.env["OS_USERNAME"], Password: d.env["OS_PASSWORD"],
		DomainName: d.env["OS_USER_DOMAIN_NAME"], TenantName: d.env["OS_PROJECT_NAME"], AllowReauth: true,
	}))
	if provider.ProjectID != d.env["OS_PROJECT_ID"] {
		d.t.Fatalf("logged in to project %q, the openrc says %q", provider.ProjectID, d.env["OS_PROJECT_ID"])
	}
	eo := golangsdk.EndpointOpts{Region: d.env["OS_REGION_NAME"]}
	client := must[*golangsdk.ServiceClient](d.t)
	v := &vendor{
		deployment: d,
		drs:        client(openstack.NewDRSServiceV2(provider, eo)),
		evs:        client(openstack.NewBlockStorageV2(provider, eo)),
		cinder:     client(openstack.NewBlockStorageV3(provider, eo)),
	}
	v1 := *v.evs
	v1.ResourceBase = strings.Replace(v.evs.ResourceBaseURL(), "/v2/", "/v1/", 1)
	v.jobs = &v1
	return v
}

// status gives gone for a 404.
func status(s string, err error) (string, error) {
	var missing golangsdk.ErrDefault404
	if errors.As(err, &missing) {
		return gone, nil
	}
	return s, err
}

func (v *vendor) volumeStatus(id string) func() (string, error) {
	return func() (string, error) {
		got, err := cloudvolumes.Get(v.evs, id).Extract()
		if err != nil {
			return status("", err)
		}
		return got.Status, nil
	}
}

func (v *vendor) pairStatus(id string) func() (string, error) {
	return func() (string, error) {
		got, err := pairs.Get(v.drs, id).Extract()
		if err != nil {
			return status("", err)
		}
		return got.Status, nil
	}
}

func (v *vendor) groupStatus(id string) func() (string, error) {
	return func() (string, error) {
		got, err := groups.Get(v.drs, id).Extract()
		if err != nil {
			return status("", err)
		}
		return got.Status, nil
	}
}

// groupState gives status, replication_status and priority_station with slashes between.
func (v *vendor) groupState(id string) func() (string, error) {
	return func() (string, error) {
		got, err := groups.Get(v.drs, id).Extract()
		if err != nil {
			return status("", err)
		}
		return got.Status + "/" + got.ReplicationStatus + "/" + got.PriorityStation, nil
	}
}

// disk makes a volume as the vendor's clients do: a job, then its volume.
func (v *vendor) volume(name, az string, gib int) string {
	v.t.Helper()
	job := must[*cloudvolumes.JobResponse](v.t)(cloudvolumes.Create(v.evs, cloudvolumes.CreateOpts{Volume: cloudvolumes.VolumeOpts{
		AvailabilityZone: az, VolumeType: "SSD", Name: name, Size: gib,
	}}).Extract())
	settle(v.t, "job of "+name, []string{"INIT", "RUNNING"}, "SUCCESS", func() (string, error) {
		got, err := jobs.GetJobDetails(v.jobs, job.JobID).ExtractJob()
		if err != nil {
			return "", err
		}
		return got.Status, nil
	})
	if len(job.VolumeIDs) != 1 {
		v.t.Fatalf("job: %+v", job)
	}
	settle(v.t, "volume "+name, []string{"creating"}, "available", v.volumeStatus(job.VolumeIDs[0]))
	return job.VolumeIDs[0]
}

func (v *vendor) deleteVolume(id string) {
	v.t.Helper()
	ok(v.t, cloudvolumes.Delete(v.evs, id, cloudvolumes.DeleteOpts{Cascade: true}).ExtractErr())
	settle(v.t, "deleted volume", []string{"available", "deleting"}, gone, v.volumeStatus(id))
}

func (v *vendor) pair(name string, volumes ...string) string {
	v.t.Helper()
	p := must[*pairs.ReplicationCreate](v.t)(pairs.Create(v.drs, pairs.CreateOps{
		Name: name, Description: "of " + name, VolumeIDs: volumes, PriorityStation: "az1", ReplicationModel: "hypermetro",
	}).Extract())
	if p.VolumeIDs != strings.Join(volumes, ",") || p.Name != name || p.PriorityStation != "az1" || p.CreatedAt == "" || p.UpdatedAt != "" {
		v.t.Errorf("created pair: %+v", p)
	}
	settle(v.t, "pair "+name, []string{"creating"}, "available", v.pairStatus(p.ID))
	return p.ID
}

func (v *vendor) deletePair(id string) {
	v.t.Helper()
	ok(v.t, pairs.Delete(v.drs, id).ExtractErr())
	settle(v.t, "deleted pair", []string{"available", "deleting"}, gone, v.pairStatus(id))
}

func (v *vendor) getGroup(id string) *groups.ReplicationConsistencyGroup {
	v.t.Helper()
	return must[*groups.ReplicationConsistencyGroup](v.t)(groups.Get(v.drs, id).Extract())
}

func (v *vendor) getPair(id string) *pairs.Replication {
	v.t.Helper()
	return must[*pairs.Replication](v.t)(pairs.Get(v.drs, id).Extract())
}

// uri is where a guest opens a volume.
func (v *vendor) uri(id string) string {
	v.t.Helper()
	info := must[map[string]any](v.t)(volumeactions.InitializeConnection(v.cinder, id, volumeactions.InitializeConnectionOpts{Host: "h"}).Extract())
	data, _ := info["data"].(map[string]any)
	uri, _ := data["uri"].(string)
	if uri == "" {
		v.t.Fatalf("connection of %s: %v", id, info)
	}
	return uri
}

// refused checks that a call was answered with that HTTP status.
func refused(t *testing.T, err error, code int) {
	t.Helper()
	var unexpected golangsdk.ErrUnexpectedResponseCode
	var bad golangsdk.ErrDefault400
	var missing golangsdk.ErrDefault404
	got := 0
	switch {
	case errors.As(err, &bad):
		got = http.StatusBadRequest
	case errors.As(err, &missing):
		got = http.StatusNotFound
	case errors.As(err, &unexpected):
		got = unexpected.Actual
	}
	if got != code {
		t.Errorf("answered %v; want HTTP status %d", err, code)
	}
}

func (v *vendor) listPairs(o pairs.ListOpts) []string {
	v.t.Helper()
	page, err := pairs.List(v.drs, o).AllPages()
	ok(v.t, err)
	ids := []string{}
	for _, p := range must[[]pairs.Replication](v.t)(pairs.ExtractReplications(page)) {
		ids = append(ids, p.ID)
	}
	return ids
}

func (v *vendor) listGroups(o groups.ListOpts) []string {
	v.t.Helper()
	page, err := groups.List(v.drs, o).AllPages()
	ok(v.t, err)
	ids := []string{}
	for _, g := range must[[]groups.ReplicationConsistencyGroup](v.t)(groups.ExtractReplicationConsistencyGroups(page)) {
		ids = append(ids, g.ID)
	}
	return ids
}

func sameIDs(t *testing.T, what any, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("list %+v: %v, want %v", what, got, want)
	}
}

// TestVendorSDKVolumes are the calls for disks.
func TestVendorSDKVolumes(t *testing.T) {
	t.Parallel()
	v := deploy(t).vendor()
	id := v.volume("disk", "az2", 1)
	got := must[*cloudvolumes.Volume](t)(cloudvolumes.Get(v.evs, id).Extract())
	if got.Size != 1 || got.AvailabilityZone != "az2" || got.VolumeType != "SSD" || got.Name != "disk" || len(got.Attachments) != 0 {
		t.Errorf("volume: %+v", got)
	}
	must[*cloudvolumes.Volume](t)(cloudvolumes.Update(v.evs, id, cloudvolumes.UpdateOpts{Name: "renamed"}).Extract())
	if some := must[[]cloudvolumes.Volume](t)(cloudvolumes.ListPage(v.evs, cloudvolumes.ListOpts{Name: "renamed", AvailabilityZone: "az2", Status: "available"})); len(some) != 1 || some[0].ID != id {
		t.Errorf("volumes: %+v", some)
	}
	must[*cloudvolumes.JobResponse](t)(cloudvolumes.ExtendSize(v.evs, id, cloudvolumes.ExtendOpts{SizeOpts: cloudvolumes.ExtendSizeOpts{NewSize: 2}}).Extract())
	settle(t, "grown volume", []string{"extending", "available 1"}, "available 2", func() (string, error) {
		got, err := cloudvolumes.Get(v.evs, id).Extract()
		if err != nil {
			return "", err
		}
		if got.Status == "available" {
			return fmt.Sprintf("available %d", got.Size), nil
		}
		return got.Status, nil
	})
	data := []byte("over NBD")
	v.write(v.uri(id), data, 2<<30-int64(len(data))) // into what was added
	if got := v.read(v.uri(id), len(data), 2<<30-int64(len(data))); string(got) != string(data) {
		t.Errorf("read back %q", got)
	}
	ok(t, volumeactions.Attach(v.cinder, id, volumeactions.AttachOpts{InstanceUUID: "server", MountPoint: "/dev/vdb", Mode: volumeactions.ReadWrite}).ExtractErr())
	attached := must[*volumes3.Volume](t)(volumes3.Get(v.cinder, id).Extract())
	if attached.Status != "in-use" || len(attached.Attachments) != 1 || attached.Attachments[0].ServerID != "server" {
		t.Fatalf("attached volume: %+v", attached)
	}
	refused(t, volumes3.Delete(v.cinder, id).ExtractErr(), http.StatusBadRequest)
	ok(t, volumeactions.Detach(v.cinder, id, volumeactions.DetachOpts{AttachmentID: attached.Attachments[0].AttachmentID}).ExtractErr())
	v.deleteVolume(id)

	second := must[*volumes3.Volume](t)(volumes3.Create(v.cinder, volumes3.CreateOpts{Size: 1, Name: "v3"}).Extract())
	settle(t, "volume of v3", []string{"creating"}, "available", v.volumeStatus(second.ID))
	ok(t, volumes3.Delete(v.cinder, second.ID).ExtractErr())
	settle(t, "deleted volume of v3", []string{"available", "deleting"}, gone, v.volumeStatus(second.ID))
}

// TestVendorSDKLists goes through every filter that the SDK has, beside things that must not match.
func TestVendorSDKLists(t *testing.T) {
	t.Parallel()
	v := deploy(t).vendor()
	prod1, dr1 := v.volume("prod1", "az1", 1), v.volume("dr1", "az2", 1)
	prod2, dr2 := v.volume("prod2", "az1", 1), v.volume("dr2", "az2", 1)
	p1 := v.pair("one", prod1, dr1)
	p2 := v.pair("two", prod2, dr2)
	create := func(name, pair string) string {
		t.Helper()
		g := must[*groups.ReplicationConsistencyGroupCreateorUpdate](t)(groups.Create(v.drs, groups.CreateOps{
			Name: name, Description: "of " + name, ReplicationIDs: []string{pair}, PriorityStation: "az1", ReplicationModel: "hypermetro",
		}).Extract())
		if g.Name != name || g.Description != "of "+name || g.PriorityStation != "az1" || g.CreatedAt == "" {
			t.Errorf("created group: %+v", g)
		}
		settle(t, "group "+name, []string{"creating"}, "available", v.groupStatus(g.ID))
		return g.ID
	}
	g1 := create("g-one", p1)
	created := v.getPair(p2).CreatedAt

	for _, c := range []struct {
		o    pairs.ListOpts
		want []string
	}{
		{pairs.ListOpts{}, []string{p2, p1}},
		{pairs.ListOpts{Name: "one"}, []string{p1}},
		{pairs.ListOpts{Name: "three"}, nil},
		{pairs.ListOpts{Status: "available"}, []string{p2, p1}},
		{pairs.ListOpts{Status: "error"}, nil},
		{pairs.ListOpts{ReplicationConsistencyGroupID: g1}, []string{p1}},
		{pairs.ListOpts{VolumeID: dr2}, []string{p2}},
		{pairs.ListOpts{VolumeIDs: dr1 + ", " + prod1}, []string{p1}},
		{pairs.ListOpts{PriorityStation: "az1"}, []string{p2, p1}},
		{pairs.ListOpts{PriorityStation: "az2"}, nil},
		{pairs.ListOpts{SortKey: "name", SortDir: "asc"}, []string{p1, p2}},
		{pairs.ListOpts{SortKey: "name", SortDir: "desc"}, []string{p2, p1}},
		{pairs.ListOpts{Limit: 1}, []string{p2}},
		{pairs.ListOpts{Limit: 1, Offset: 1}, []string{p1}},
		{pairs.ListOpts{Marker: p2}, []string{p1}},
		{pairs.ListOpts{Marker: p1}, nil},
		{pairs.ListOpts{ChangesSince: created, Name: "two"}, []string{p2}},
		{pairs.ListOpts{ChangesSince: "2099-01-01T00:00:00"}, nil},
	} {
		sameIDs(t, c.o, v.listPairs(c.o), c.want...)
	}
	g2 := create("g-two", p2)
	for _, c := range []struct {
		o    groups.ListOpts
		want []string
	}{
		{groups.ListOpts{}, []string{g2, g1}},
		{groups.ListOpts{Name: "g-one"}, []string{g1}},
		{groups.ListOpts{Status: "available"}, []string{g2, g1}},
		{groups.ListOpts{Status: "failovered"}, nil},
		{groups.ListOpts{VolumeID: dr2}, []string{g2}},
		{groups.ListOpts{PriorityStation: "az1"}, []string{g2, g1}},
		{groups.ListOpts{PriorityStation: "az2"}, nil},
		{groups.ListOpts{SortKey: "name", SortDir: "asc"}, []string{g1, g2}},
		{groups.ListOpts{Limit: 1}, []string{g2}},
		{groups.ListOpts{Limit: 1, Offset: 1}, []string{g1}},
		{groups.ListOpts{Marker: g2}, []string{g1}},
		{groups.ListOpts{ChangesSince: "2017-09-28T05:08:32"}, []string{g2, g1}},
		{groups.ListOpts{ChangesSince: "2099-01-01T00:00:00"}, nil},
	} {
		sameIDs(t, c.o, v.listGroups(c.o), c.want...)
	}
	for _, o := range []pairs.ListOpts{{SortKey: "colour"}, {SortDir: "up"}, {Limit: 1001}, {Marker: "nothing"}} {
		_, err := pairs.List(v.drs, o).AllPages()
		refused(t, err, http.StatusBadRequest)
	}

	// A disk in a pair is not to be deleted or grown alone; a pair in a group is not to be deleted,
	// nor a group with pairs.
	refused(t, cloudvolumes.Delete(v.evs, prod1, cloudvolumes.DeleteOpts{}).ExtractErr(), http.StatusBadRequest)
	_, err := cloudvolumes.ExtendSize(v.evs, prod1, cloudvolumes.ExtendOpts{SizeOpts: cloudvolumes.ExtendSizeOpts{NewSize: 2}}).Extract()
	refused(t, err, http.StatusBadRequest)
	refused(t, pairs.Delete(v.drs, p1).ExtractErr(), http.StatusConflict)
	refused(t, groups.Delete(v.drs, g1).ExtractErr(), http.StatusConflict)
	refused(t, pairs.Get(v.drs, g1).Err, http.StatusNotFound)
	_, err = pairs.Create(v.drs, pairs.CreateOps{VolumeIDs: []string{prod1, dr2}, PriorityStation: "az1", ReplicationModel: "hypermetro"}).Extract()
	refused(t, err, http.StatusBadRequest)
	_, err = groups.Create(v.drs, groups.CreateOps{ReplicationIDs: []string{p1}, PriorityStation: "az1", ReplicationModel: "hypermetro"}).Extract()
	refused(t, err, http.StatusBadRequest)
}
