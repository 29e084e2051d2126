//go:build !simrun

package whole

// patched says that simrun built this.
const patched = false
