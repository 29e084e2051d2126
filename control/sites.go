package control

import "github.com/lockstep-dr/lockstep"

// StoreDiesWith reports whether the loss of that zone takes the store's quorum along, and so every
// transition: sites names the zone or third site of each member. No sites: not known, false.
func StoreDiesWith(sites []string, az lockstep.AZ) bool {
	left := 0
	for _, s := range sites {
		if s != string(az) {
			left++
		}
	}
	return len(sites) > 0 && left < len(sites)/2+1
}
