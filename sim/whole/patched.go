//go:build simrun

package whole

const patched = true
