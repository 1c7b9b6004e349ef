package identity_test

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/harp-tunnel/harp/identity"
)

// The key of RFC 8037 appendix A.
const (
	rfcKey        = `{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"}`
	rfcSecret     = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"
	rfcThumbprint = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
)

// vector is an entry of a file in testdata/identity; its README says which fields each file uses.
type vector struct {
	Name         string
	Key          string
	JWK          string
	Thumbprint   string
	Session      string
	Label        string
	Registration identity.Registration
	Header       string
	Payload      string
	JWS          string
	Error        string
	Path         string
	Clean        string
	File         string
	Thumbprints  []string
	Says         string
}

// readVectors returns one list of a vector file and fails the test if there is nothing in it.
func readVectors(t testing.TB, file, list string) []vector {
	t.Helper()
	data, err := os.ReadFile("../testdata/identity/" + file)
	if err != nil {
		t.Fatal(err)
	}
	var lists map[string][]vector
	if err := json.Unmarshal(data, &lists); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	if len(lists[list]) == 0 {
		t.Fatalf("%s: no vectors in the list %q", file, list)
	}
	return lists[list]
}

func parseKey(t testing.TB, data string) identity.Key {
	t.Helper()
	k, err := identity.ParseKey([]byte(data))
	if err != nil {
		t.Fatal(err)
	}
	return k
}
