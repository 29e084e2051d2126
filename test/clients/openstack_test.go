package clients

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-dr/lockstep/test/need"
)

// openstackCLI is OpenStack's command line client with one way of getting its credentials.
type openstackCLI struct {
	t    *testing.T
	dir  string // where it runs: clouds.yaml is looked for there
	env  []string
	args []string
}

// run gives standard output, and fails the test unless the client was content.
func (o openstackCLI) run(args ...string) string {
	o.t.Helper()
	out, err := o.try(args...)
	if err != nil {
		o.t.Fatal(err)
	}
	return out
}

func (o openstackCLI) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(o.t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "openstack", append(slices.Clone(o.args), args...)...)
	cmd.Env, cmd.Dir = o.env, o.dir
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", errors.New("openstack " + strings.Join(args, " ") + ": " + err.Error() + "\n" + stdout.String() + stderr.String())
	}
	return stdout.String(), nil
}

// rows decodes what a list or show prints as JSON.
func rows[T any](o openstackCLI, args ...string) T {
	o.t.Helper()
	var v T
	out := o.run(append(args, "-f", "json")...)
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		o.t.Fatalf("openstack %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return v
}

// TestOpenStackCommandLine is python3-openstackclient, as Debian has it.
func TestOpenStackCommandLine(t *testing.T) {
	t.Parallel()
	need.Programs(t, "openstack")
	d := deploy(t)
	openrc := openstackCLI{t: t, dir: t.TempDir(), env: environ(d.env)}
	clouds := openstackCLI{t: t, dir: d.dir, env: environ(nil), args: []string{"--os-cloud", "lockstep"}}

	type object = map[string]any
	for name, o := range map[string]openstackCLI{"openrc": openrc, "clouds.yaml": clouds} {
		if token := rows[object](o, "token", "issue"); token["project_id"] != d.env["OS_PROJECT_ID"] || token["id"] == "" {
			t.Errorf("%s: token: %v", name, token)
		}
	}
	var kinds []string
	for _, e := range rows[[]object](clouds, "catalog", "list") {
		kinds = append(kinds, e["Type"].(string))
	}
	for _, kind := range []string{"identity", "volumev3"} {
		if !slices.Contains(kinds, kind) {
			t.Errorf("catalog has %v", kinds)
		}
	}
	if zones := rows[[]object](openrc, "availability", "zone", "list", "--volume"); len(zones) != 2 || zones[0]["Zone Name"] != "az1" || zones[1]["Zone Status"] != "available" {
		t.Errorf("zones: %v", zones)
	}
	if types := rows[[]object](clouds, "volume", "type", "list"); len(types) == 0 || types[0]["Name"] != "SSD" {
		t.Errorf("types: %v", types)
	}

	made := rows[object](openrc, "volume", "create", "--size", "1", "--availability-zone", "az2", "--type", "SSD", "--description", "d", "--property", "k=v", "disk")
	id, _ := made["id"].(string)
	if id == "" || made["status"] != "creating" && made["status"] != "available" {
		t.Fatalf("create: %v", made)
	}
	settle(t, "volume", []string{"creating"}, "available", func() (string, error) {
		return strings.TrimSpace(openrc.run("volume", "show", id, "-f", "value", "-c", "status")), nil
	})
	if list := rows[[]object](clouds, "volume", "list"); len(list) != 1 || list[0]["ID"] != id || list[0]["Name"] != "disk" || list[0]["Status"] != "available" {
		t.Errorf("list: %v", list)
	}
	clouds.run("volume", "set", "--name", "renamed", "--property", "x=y", "--size", "2", "disk") // found by its name
	show := rows[object](clouds, "volume", "show", "renamed")
	if show["id"] != id || show["size"] != 2.0 || show["availability_zone"] != "az2" || show["type"] != "SSD" || show["description"] != "d" || show["replication_status"] != "disabled" {
		t.Errorf("show: %v", show)
	}
	if p, _ := show["properties"].(object); p["k"] != "v" || p["x"] != "y" {
		t.Errorf("properties: %v", show["properties"])
	}
	openrc.run("volume", "unset", "--property", "k", "renamed")
	openrc.run("volume", "delete", "renamed")
	eventually(t, patience, "the volume is gone", func() error {
		_, err := openrc.try("volume", "show", id)
		if err == nil {
			return errors.New("it is there")
		}
		if !strings.Contains(err.Error(), "No volume") {
			t.Fatal(err)
		}
		return nil
	})
}
