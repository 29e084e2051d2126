package cinder

import (
	"maps"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/api/rest"
	"github.com/lockstep-dr/lockstep/control"
)

// Link points from an answer to a resource.
type Link struct {
	Rel  string `json:"rel"`
	Href string `json:"href"`
}

// Attachment as volume answers carry it: id is the volume's id, as in Cinder.
type Attachment struct {
	ID           string  `json:"id"`
	AttachmentID string  `json:"attachment_id"`
	VolumeID     string  `json:"volume_id"`
	ServerID     string  `json:"server_id"`
	HostName     *string `json:"host_name"`
	Device       string  `json:"device"`
	AttachedAt   string  `json:"attached_at"`
}

// Volume as show, create, update and the detailed list carry it. Types matter to clients: size is
// a number, bootable and shareable are strings, times have no zone.
type Volume struct {
	ID                 string            `json:"id"`
	Name               *string           `json:"name"`
	Description        *string           `json:"description"`
	Status             string            `json:"status"`
	Size               int64             `json:"size"` // GiB
	VolumeType         string            `json:"volume_type"`
	AvailabilityZone   string            `json:"availability_zone"`
	Attachments        []Attachment      `json:"attachments"`
	Metadata           map[string]string `json:"metadata"`
	Bootable           string            `json:"bootable"`
	Encrypted          bool              `json:"encrypted"`
	Multiattach        bool              `json:"multiattach"`
	Shareable          string            `json:"shareable"`
	UserID             string            `json:"user_id"`
	SnapshotID         *string           `json:"snapshot_id"`
	SourceVolID        *string           `json:"source_volid"`
	ConsistencyGroupID *string           `json:"consistencygroup_id"`
	WWN                *string           `json:"wwn"`
	MigrationStatus    *string           `json:"migration_status"`
	ReplicationStatus  string            `json:"replication_status"`
	CreatedAt          string            `json:"created_at"`
	UpdatedAt          *string           `json:"updated_at"`
	Links              []Link            `json:"links"`
	Host               *string           `json:"os-vol-host-attr:host"`
	Tenant             string            `json:"os-vol-tenant-attr:tenant_id"`
	MigStat            *string           `json:"os-vol-mig-status-attr:migstat"`
	NameID             *string           `json:"os-vol-mig-status-attr:name_id"`
	ReplicationDriver  *string           `json:"os-volume-replication:driver_data"`
	ReplicationState   *string           `json:"os-volume-replication:extended_status"`
}

func boolString(b bool) string {
	if b {
		return "true"
	}
	return "false"
}

func orNil(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// links of a volume; version is "v2" or "v3".
func links(base, version string, project lockstep.ProjectID, id lockstep.VolumeID) []Link {
	tail := "/" + string(project) + "/volumes/" + string(id)
	return []Link{{"self", base + "/" + version + tail}, {"bookmark", base + tail}}
}

// version of the API that a request came in by, "v2" or "v3".
func version(r *rest.Request) string {
	if len(r.URL.Path) > 3 && r.URL.Path[:4] == "/v3/" {
		return "v3"
	}
	return "v2"
}

// View is a volume in the words of the API.
func View(r *rest.Request, v control.VolumeView) Volume {
	out := Volume{
		ID: string(v.ID), Name: v.Name, Description: v.Description, Status: v.Status,
		Size: v.SizeBytes / lockstep.GiB, VolumeType: v.Type, AvailabilityZone: string(v.AZ),
		Attachments: []Attachment{}, Metadata: metadataOf(v), Bootable: boolString(v.Bootable),
		Multiattach: v.Multiattach, Shareable: boolString(v.Multiattach), UserID: v.User,
		ReplicationStatus: v.ReplicationStatus, CreatedAt: rest.Time(v.CreatedAt),
		UpdatedAt: rest.TimePtr(v.UpdatedAt), Links: links(r.Base, version(r), v.Project, v.ID),
		Host: orNil(string(v.Node)), Tenant: string(v.Project),
	}
	if out.ReplicationStatus == "" {
		out.ReplicationStatus = "disabled"
	}
	for _, at := range v.Attachments {
		out.Attachments = append(out.Attachments, Attachment{
			ID: string(v.ID), AttachmentID: at.ID, VolumeID: string(v.ID), ServerID: at.Server,
			HostName: orNil(at.Host), Device: at.Device, AttachedAt: rest.Time(at.AttachedAt),
		})
	}
	return out
}

// metadataOf is the user's metadata, and the read-only flag where Cinder shows it.
func metadataOf(v control.VolumeView) map[string]string {
	out := map[string]string{}
	maps.Copy(out, v.Metadata)
	if v.ReadOnly {
		out["readonly"] = "True"
	}
	return out
}

// brief is a volume in the short list.
type brief struct {
	ID    string  `json:"id"`
	Name  *string `json:"name"`
	Links []Link  `json:"links"`
}
