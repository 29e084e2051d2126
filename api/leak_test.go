package api_test

import (
	"testing"

	"go.uber.org/goleak"
)

// TestMain fails when a test leaves a goroutine behind: what is closed has ended.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
