package identity_test

import (
	"errors"
	"fmt"

	"github.com/harp-tunnel/harp/identity"
)

// The hostname of a tunnel follows from the key alone.
func Example() {
	key, err := identity.ParseKey([]byte(rfcKey))
	if err != nil {
		fmt.Println(err)
		return
	}
	name := key.Public().Thumbprint()
	fmt.Println(name)
	fmt.Printf("https://%s.tunnels.example.com\n", name.Label(""))
	fmt.Printf("https://%s.tunnels.example.com\n", name.Label("api"))
	// Output:
	// kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k
	// https://4rsan3rocgnkjns3qjukyhz4bzuvbrav2dhykeyrbmnjick424lq.tunnels.example.com
	// https://g6zvvr5cvc5ov4cfnn3kqx7iimbrbuqei3k7ayfnmarxku54bejq.tunnels.example.com
}

// An agent signs; the edge verifies, then checks whom and what the registration is for.
func ExampleVerify() {
	key, err := identity.ParseKey([]byte(rfcKey))
	if err != nil {
		fmt.Println(err)
		return
	}
	jws, err := key.Sign(identity.Registration{
		Audience:  "tunnels.example.com",
		Challenge: "q83vEjRWeJA",
		Path:      "/api/",
	})
	if err != nil {
		fmt.Println(err)
		return
	}

	public, r, err := identity.Verify(jws)
	if errors.Is(err, identity.ErrSignature) || errors.Is(err, identity.ErrRequest) {
		fmt.Println("refused:", err)
		return
	}
	fmt.Println(public.Thumbprint(), r.Path)
	fmt.Println(r.Audience == "tunnels.example.com" && r.HasChallenge("q83vEjRWeJA"))
	// Output:
	// kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k /api
	// true
}
