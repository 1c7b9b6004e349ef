package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/grpclog"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/harp-tunnel/harp/tunnel/agent"
)

// quietGRPC keeps gRPC's own log out of the tests. It has to be called before anything else of gRPC is used, and
// turns what its interop functions call fatal into a panic.
var quietGRPC = sync.OnceFunc(func() {
	grpclog.SetLoggerV2(grpcLog{grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard)})
})

type grpcLog struct{ grpclog.LoggerV2 }

// A grpcFailure is what grpcLog panics with.
type grpcFailure string

func (grpcLog) Fatal(args ...any)                 { panic(grpcFailure(fmt.Sprint(args...))) }
func (grpcLog) Fatalln(args ...any)               { panic(grpcFailure(fmt.Sprintln(args...))) }
func (grpcLog) Fatalf(format string, args ...any) { panic(grpcFailure(fmt.Sprintf(format, args...))) }

// serveGRPC runs a gRPC server of the interop service; it returns host:port, and how to break it off.
func serveGRPC(t *testing.T, service testgrpc.TestServiceServer, opts ...grpc.ServerOption) (addr string, stop func()) {
	t.Helper()
	quietGRPC()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(opts...)
	testgrpc.RegisterTestServiceServer(srv, service)
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(ln) }() // ends when srv stops
	t.Cleanup(func() {
		srv.Stop()
		await(t, ended, "the gRPC server to stop", func(error) {})
	})
	return ln.Addr().String(), srv.Stop
}

// grpcDial returns a client of the tunnel; it is closed when the test ends.
func (tn *tunnel) grpcDial(t *testing.T) *grpc.ClientConn {
	t.Helper()
	quietGRPC()
	creds := insecure.NewCredentials()
	if tn.Roots != nil {
		creds = credentials.NewTLS(&tls.Config{RootCAs: tn.Roots, ServerName: tn.Host})
	}
	cc, err := grpc.NewClient("passthrough:///"+tn.Addr, grpc.WithAuthority(tn.Host), grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return cc
}

// eachGRPC runs f for gRPC visitors with and without TLS; start publishes a service over h2c.
func eachGRPC(t *testing.T, f func(t *testing.T, start func(testgrpc.TestServiceServer, ...option) *tunnel)) {
	t.Helper()
	for name, opts := range map[string][]option{"TLS": {withTLS()}, "prior knowledge": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f(t, func(service testgrpc.TestServiceServer, more ...option) *tunnel {
				addr, _ := serveGRPC(t, service)
				return publish(t, "h2c://"+addr, append(slices.Clone(opts), more...)...)
			})
		})
	}
}

// A grpcService answers unary calls and two-way streams with functions; the rest is unimplemented.
type grpcService struct {
	testgrpc.UnimplementedTestServiceServer
	unary  func(context.Context, *testgrpc.SimpleRequest) (*testgrpc.SimpleResponse, error)
	duplex func(testgrpc.TestService_FullDuplexCallServer) error
}

func (s grpcService) UnaryCall(ctx context.Context, r *testgrpc.SimpleRequest) (*testgrpc.SimpleResponse, error) {
	return s.unary(ctx, r)
}

func (s grpcService) FullDuplexCall(stream testgrpc.TestService_FullDuplexCallServer) error {
	return s.duplex(stream)
}

func payload(n int) *testgrpc.Payload { return &testgrpc.Payload{Body: pattern(n)} }

// grpcContext bounds a call as every wait of these tests is bounded.
func grpcContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	t.Cleanup(cancel)
	return ctx
}

// TestGRPCDeadline wants the visitor's deadline at the upstream, and both ends to see it pass.
func TestGRPCDeadline(t *testing.T) {
	t.Parallel()
	eachGRPC(t, func(t *testing.T, start func(testgrpc.TestServiceServer, ...option) *tunnel) {
		left, ended := make(chan time.Duration, 1), make(chan error, 1)
		tn := start(grpcService{unary: func(ctx context.Context, _ *testgrpc.SimpleRequest) (*testgrpc.SimpleResponse, error) {
			deadline, _ := ctx.Deadline()
			left <- time.Until(deadline)
			<-ctx.Done()
			ended <- ctx.Err()
			return nil, ctx.Err()
		}})
		const limit = 700 * time.Millisecond
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		begin := time.Now()
		_, err := testgrpc.NewTestServiceClient(tn.grpcDial(t)).UnaryCall(ctx, &testgrpc.SimpleRequest{})
		took := time.Since(begin)
		if code := status.Code(err); code != codes.DeadlineExceeded {
			t.Errorf("the visitor got %v after %v, want DEADLINE_EXCEEDED", err, took)
		}
		await(t, left, "the call", func(d time.Duration) {
			if d <= 0 || d > limit {
				t.Errorf("the upstream had %v left, want the visitor's %v", d, limit)
			}
		})
		await(t, ended, "the upstream to see the deadline pass", func(error) {})
	})
}

// TestGRPCCancel wants the upstream to see within a second that the visitor has given a call up.
func TestGRPCCancel(t *testing.T) {
	t.Parallel()
	eachGRPC(t, func(t *testing.T, start func(testgrpc.TestServiceServer, ...option) *tunnel) {
		ended := make(chan error, 1)
		tn := start(grpcService{duplex: func(s testgrpc.TestService_FullDuplexCallServer) error {
			s.Send(&testgrpc.StreamingOutputCallResponse{})
			<-s.Context().Done()
			ended <- s.Context().Err()
			return nil
		}})
		client := testgrpc.NewTestServiceClient(tn.grpcDial(t))
		ctx, cancel := context.WithCancel(grpcContext(t))
		stream, err := client.FullDuplexCall(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		cancel()
		begin := time.Now()
		await(t, ended, "the upstream to see the cancellation", func(err error) {
			if took := time.Since(begin); took > abortLimit || !errors.Is(err, context.Canceled) {
				t.Errorf("after %v the upstream saw %v", took, err)
			}
		})
	})
}

// TestGRPCErrorTrailers wants status, message and metadata of an error, at once and after messages.
func TestGRPCErrorTrailers(t *testing.T) {
	t.Parallel()
	eachGRPC(t, func(t *testing.T, start func(testgrpc.TestServiceServer, ...option) *tunnel) {
		st, err := status.New(codes.FailedPrecondition, "not today: 100 % \"ü\"\n").WithDetails(payload(100))
		if err != nil {
			t.Fatal(err)
		}
		late := metadata.Pairs("x-late", "one", "x-late", "two", "x-late-bin", "\x00\xff\n")
		tn := start(grpcService{
			unary: func(ctx context.Context, _ *testgrpc.SimpleRequest) (*testgrpc.SimpleResponse, error) {
				grpc.SetTrailer(ctx, late)
				return nil, st.Err()
			},
			duplex: func(s testgrpc.TestService_FullDuplexCallServer) error {
				s.SetHeader(metadata.Pairs("x-head-bin", "\x00\xff"))
				for range 3 {
					s.Send(&testgrpc.StreamingOutputCallResponse{Payload: payload(1000)})
				}
				s.SetTrailer(late)
				return st.Err()
			},
		})
		client := testgrpc.NewTestServiceClient(tn.grpcDial(t))
		wantStatus := func(err error, trailer metadata.MD) {
			t.Helper()
			got := status.Convert(err)
			if got.Code() != st.Code() || got.Message() != st.Message() || len(got.Details()) != 1 {
				t.Errorf("got %v with details %v, want %v", err, got.Details(), st.Err())
			}
			for name, want := range late {
				if !slices.Equal(trailer[name], want) {
					t.Errorf("the trailer %s is %q, want %q", name, trailer[name], want)
				}
			}
		}
		var trailer metadata.MD
		_, err = client.UnaryCall(grpcContext(t), &testgrpc.SimpleRequest{}, grpc.Trailer(&trailer))
		wantStatus(err, trailer)

		stream, err := client.FullDuplexCall(grpcContext(t))
		if err != nil {
			t.Fatal(err)
		}
		if head, err := stream.Header(); err != nil || !slices.Equal(head["x-head-bin"], []string{"\x00\xff"}) {
			t.Errorf("got the header %q, %v", head, err)
		}
		for i := range 3 {
			if m, err := stream.Recv(); err != nil || len(m.GetPayload().GetBody()) != 1000 {
				t.Errorf("message %d before the error is %v, %v", i, m, err)
			}
		}
		begin := time.Now()
		_, err = stream.Recv()
		wantStatus(err, stream.Trailer())
		if took := time.Since(begin); took > endLimit {
			t.Errorf("the status came %v after the last message: it waits for the visitor's own messages to end", took)
		}
	})
}

// TestGRPCUpstreamDies wants a call whose upstream breaks off to fail, whatever came before.
func TestGRPCUpstreamDies(t *testing.T) {
	t.Parallel()
	addr, stop := serveGRPC(t, grpcService{duplex: func(s testgrpc.TestService_FullDuplexCallServer) error {
		s.Send(&testgrpc.StreamingOutputCallResponse{})
		<-s.Context().Done()
		return nil
	}})
	tn := publish(t, "h2c://"+addr)
	client := testgrpc.NewTestServiceClient(tn.grpcDial(t))
	stream, err := client.FullDuplexCall(grpcContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	stop()
	if _, err := stream.Recv(); status.Code(err) == codes.OK || err == io.EOF || status.Code(err) == codes.DeadlineExceeded {
		t.Errorf("the visitor got %v, but the upstream died in the middle of the call", err)
	}
	tn.needsTunnel(t)
	_, err = client.UnaryCall(grpcContext(t), &testgrpc.SimpleRequest{})
	if status.Code(err) != codes.Unavailable {
		t.Errorf("with no upstream the visitor got %v, want UNAVAILABLE", err)
	}
}

// TestGRPCCompressed wants compressed messages to pass as they are.
func TestGRPCCompressed(t *testing.T) {
	t.Parallel()
	eachGRPC(t, func(t *testing.T, start func(testgrpc.TestServiceServer, ...option) *tunnel) {
		tn := start(grpcService{unary: func(_ context.Context, r *testgrpc.SimpleRequest) (*testgrpc.SimpleResponse, error) {
			return &testgrpc.SimpleResponse{Payload: r.Payload}, nil
		}})
		client := testgrpc.NewTestServiceClient(tn.grpcDial(t))
		res, err := client.UnaryCall(grpcContext(t), &testgrpc.SimpleRequest{Payload: payload(100_000)}, grpc.UseCompressor(gzip.Name))
		if diff := sameBytes(res.GetPayload().GetBody(), pattern(100_000)); diff != "" || err != nil {
			t.Errorf("the echo is %s (%v)", diff, err)
		}
	})
}

// TestGRPCTLSUpstream has an upstream whose HTTP/2 is chosen by ALPN.
func TestGRPCTLSUpstream(t *testing.T) {
	t.Parallel()
	certFile, keyFile, _ := writeCertificate(t)
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	addr, _ := serveGRPC(t, grpcService{unary: func(_ context.Context, r *testgrpc.SimpleRequest) (*testgrpc.SimpleResponse, error) {
		return &testgrpc.SimpleResponse{Payload: r.Payload}, nil
	}}, grpc.Creds(credentials.NewServerTLSFromCert(&pair)))
	for name, opts := range map[string][]option{"TLS": {withTLS()}, "prior knowledge": nil} {
		t.Run(name, func(t *testing.T) {
			tn := publish(t, "https://"+addr, append(opts, withForward(func(o *agent.ForwardOptions) { o.InsecureSkipVerify = true }))...)
			tn.needsTunnel(t)
			res, err := testgrpc.NewTestServiceClient(tn.grpcDial(t)).UnaryCall(grpcContext(t), &testgrpc.SimpleRequest{Payload: payload(1000)})
			if diff := sameBytes(res.GetPayload().GetBody(), pattern(1000)); diff != "" || err != nil {
				t.Errorf("the echo is %s (%v)", diff, err)
			}
		})
	}
}

// TestGRPCLimits wants a call beyond the body limit to fail visibly, in either direction.
func TestGRPCLimits(t *testing.T) {
	t.Parallel()
	eachGRPC(t, func(t *testing.T, start func(testgrpc.TestServiceServer, ...option) *tunnel) {
		tn := start(grpcService{duplex: func(s testgrpc.TestService_FullDuplexCallServer) error {
			for {
				m, err := s.Recv()
				if err != nil {
					return nil
				}
				for _, p := range m.ResponseParameters {
					s.Send(&testgrpc.StreamingOutputCallResponse{Payload: payload(int(p.Size))})
				}
			}
		}})
		tn.needsTunnel(t)
		client := testgrpc.NewTestServiceClient(tn.grpcDial(t))
		stream, err := client.FullDuplexCall(grpcContext(t))
		if err != nil {
			t.Fatal(err)
		}
		stream.Send(&testgrpc.StreamingOutputCallRequest{ResponseParameters: []*testgrpc.ResponseParameters{{Size: 300_000}, {Size: 300_000}}})
		for err == nil {
			_, err = stream.Recv()
		}
		if err == io.EOF || status.Code(err) == codes.OK || status.Code(err) == codes.DeadlineExceeded {
			t.Errorf("600,000 bytes of response ended with %v, want an error", err)
		}

		stream, err = client.FullDuplexCall(grpcContext(t))
		for err == nil {
			err = stream.Send(&testgrpc.StreamingOutputCallRequest{Payload: payload(100_000)})
		}
		if _, err = stream.Recv(); err == io.EOF || status.Code(err) == codes.OK || status.Code(err) == codes.DeadlineExceeded {
			t.Errorf("an endless request ended with %v, want an error", err)
		}
	})
}

// TestGRPCEdgeErrors wants the edge's own errors to be statuses that a gRPC client acts upon.
func TestGRPCEdgeErrors(t *testing.T) {
	t.Parallel()
	eachGRPC(t, func(t *testing.T, start func(testgrpc.TestServiceServer, ...option) *tunnel) {
		tn := start(grpcService{})
		tn.needsTunnel(t)
		wantCode := func(what string, tn *tunnel, code codes.Code) {
			t.Helper()
			client := testgrpc.NewTestServiceClient(tn.grpcDial(t))
			_, err := client.EmptyCall(grpcContext(t), &testgrpc.Empty{})
			if status.Code(err) != code {
				t.Errorf("%s: a call got %v, want %v", what, err, code)
			}
			stream, err := client.FullDuplexCall(grpcContext(t))
			if err == nil {
				_, err = stream.Recv()
			}
			if status.Code(err) != code {
				t.Errorf("%s: a stream got %v, want %v", what, err, code)
			}
		}
		nobody := *tn
		_, domain, _ := strings.Cut(tn.Host, ".")
		nobody.Host = "nobody." + domain
		wantCode("no such tunnel", &nobody, codes.Unimplemented)
		tn.stopAgent()
		wantCode("the agent is away", tn, codes.Unavailable)
	})
}
