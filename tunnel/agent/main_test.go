package agent

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if server := os.Getenv(childServer); server != "" {
		os.Exit(runChild(server))
	}
	goleak.VerifyTestMain(m)
}
