package tls

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

func TestBudget(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget()
		for i := range identityBudget {
			if err := b.Spend("one", fmt.Sprintf("a%d.example.org", i)); err != nil {
				t.Fatalf("hostname %d of %d: %v", i+1, identityBudget, err)
			}
		}
		if err := b.Spend("one", "more.example.org"); !isTemporary(err) {
			t.Errorf("one hostname too many: %v, want an error that passes", err)
		}
		if err := b.Spend("one", "a0.example.org"); err != nil {
			t.Errorf("a hostname that is known: %v", err)
		}
		if err := b.Spend("two", "a0.example.org"); err != nil {
			t.Errorf("another identity: %v", err)
		}
		time.Sleep(time.Hour / identityBudget)
		if err := b.Spend("one", "more.example.org"); err != nil {
			t.Errorf("after the tenth of an hour: %v", err)
		}
		if err := b.Spend("one", "evenmore.example.org"); err == nil {
			t.Error("the tenth of an hour was good for two")
		}
	})
}

// TestBudgetOfServer: many identities together get what the server has, and one that was refused has lost nothing.
func TestBudgetOfServer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget()
		for i := range serverBudget {
			if err := b.Spend(fmt.Sprint("identity ", i), "app.example.org"); err != nil {
				t.Fatalf("identity %d of %d: %v", i+1, serverBudget, err)
			}
		}
		for range 2 * identityBudget {
			if err := b.Spend("late", "app.example.org"); !isTemporary(err) {
				t.Fatalf("beyond the server's: %v, want an error that passes", err)
			}
		}
		time.Sleep(time.Hour)
		for i := range identityBudget {
			if err := b.Spend("late", fmt.Sprintf("a%d.example.org", i)); err != nil {
				t.Errorf("an hour later, hostname %d: %v", i+1, err)
			}
		}
	})
}

// TestBudgetIsBounded: identities and hostnames without end leave it small.
func TestBudgetIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget()
		for i := range 3 * maxIdentities {
			_ = b.Spend(fmt.Sprint("identity ", i), "app.example.org")
			time.Sleep(time.Hour / serverBudget / 2)
		}
		if len(b.identities) > maxIdentities || len(b.known) > maxIdentities {
			t.Errorf("%d identities and %d hostnames are kept, want at most %d", len(b.identities), len(b.known), maxIdentities)
		}
	})
}
