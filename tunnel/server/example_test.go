package server_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/harp-tunnel/harp/tunnel/server"
)

// An edge can share a listener with a site of its own: what is for the domain itself goes to the site, what is for
// a tunnel or comes from an agent to the edge. It stops before the http.Server, which does not see the links.
func ExampleNew() {
	edge, err := server.New(server.Options{Domain: "tunnels.example.com"})
	if err != nil {
		fmt.Println(err)
		return
	}
	site := http.NewServeMux()
	site.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "the site") })
	site.Handle("/.well-known/harp/", edge) // agents
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := strings.Cut(strings.ToLower(r.Host), ":")
		if host == "tunnels.example.com" {
			site.ServeHTTP(w, r)
			return
		}
		edge.ServeHTTP(w, r) // visitors; not through the mux, which would clean paths
	}))
	defer web.Close()

	for _, host := range []string{
		"tunnels.example.com",
		"4rsan3rocgnkjns3qjukyhz4bzuvbrav2dhykeyrbmnjick424lq.tunnels.example.com",
	} {
		r, _ := http.NewRequest("GET", web.URL, nil)
		r.Host = host
		res, err := web.Client().Do(r)
		if err != nil {
			fmt.Println(err)
			return
		}
		text, _ := io.ReadAll(res.Body)
		res.Body.Close()
		line, _, _ := strings.Cut(string(text), "\n")
		fmt.Println(line)
	}

	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	if err := edge.Shutdown(ctx); err != nil {
		fmt.Println("some requests were cut off:", err)
	}
	if err := web.Config.Shutdown(ctx); err != nil {
		fmt.Println("some connections were cut off:", err)
	}
	// Output:
	// the site
	// 404 No such tunnel (no-tunnel)
}
