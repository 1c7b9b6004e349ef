package agent

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
)

// TestGRPC runs grpc-go's own interoperability client and server with the Forwarder between them.
func TestGRPC(t *testing.T) {
	checkForwardLeaks(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	upstream := grpc.NewServer()
	testgrpc.RegisterTestServiceServer(upstream, interop.NewTestServer())
	go upstream.Serve(l) // ends with Stop
	t.Cleanup(upstream.Stop)

	f := newTestForwarder(t, "h2c://"+l.Addr().String(), ForwardOptions{})
	front := httptest.NewUnstartedServer(f)
	front.Config.Protocols = new(http.Protocols)
	front.Config.Protocols.SetUnencryptedHTTP2(true)
	front.Config.ErrorLog = discardLog()
	front.Start()
	t.Cleanup(front.Close)

	conn, err := grpc.NewClient("passthrough:///"+front.Listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	client := testgrpc.NewTestServiceClient(conn)
	for name, call := range map[string]func(context.Context, testgrpc.TestServiceClient, ...grpc.CallOption){
		"empty unary":        interop.DoEmptyUnaryCall,
		"large unary":        interop.DoLargeUnaryCall,
		"client streaming":   interop.DoClientStreaming,
		"server streaming":   interop.DoServerStreaming,
		"ping pong":          interop.DoPingPong,
		"empty stream":       interop.DoEmptyStream,
		"deadline":           interop.DoTimeoutOnSleepingServer,
		"cancel early":       interop.DoCancelAfterBegin,
		"cancel late":        interop.DoCancelAfterFirstResponse,
		"metadata":           interop.DoCustomMetadata,
		"status and message": interop.DoStatusCodeAndMessage,
		"odd status message": interop.DoSpecialStatusMessage,
		"no such method": func(ctx context.Context, _ testgrpc.TestServiceClient, _ ...grpc.CallOption) {
			interop.DoUnimplementedMethod(ctx, conn)
		},
	} {
		t.Run(name, func(t *testing.T) { call(ctx, client) }) // exits the process if it fails
	}
}
