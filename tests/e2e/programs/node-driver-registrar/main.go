// A stand-in for the official node-driver-registrar, for the tests' own cluster.
//
// The chart uses the official image. Its Go module cannot be fetched as a versioned module (it is tagged v2
// under a path without /v2), so the tests build this instead: the same flags, the same two calls
// that the kubelet makes, the same socket, and the same end when the kubelet refuses the driver.
// It has to be Go: the kubelet dials this one socket with an authority that Rust's HTTP/2 servers refuse.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

var version = "stand-in"

type options struct {
	csiAddress       string
	kubeletPath      string
	registrationPath string
	httpEndpoint     string
	timeout          time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.csiAddress, "csi-address", "/run/csi/socket", "the driver's socket, as seen here")
	flag.StringVar(&o.kubeletPath, "kubelet-registration-path", "", "the driver's socket, as the kubelet sees it")
	flag.StringVar(&o.registrationPath, "plugin-registration-path", "/registration", "the kubelet's plugins_registry, as seen here")
	flag.StringVar(&o.httpEndpoint, "http-endpoint", "", "serves /healthz here; empty for none")
	flag.DurationVar(&o.timeout, "timeout", time.Second, "how long the driver may take to answer")
	mode := flag.String("mode", "registration", "registration; or kubelet-registration-probe: exit 0 once the kubelet has called")
	showVersion := flag.Bool("version", false, "print the version")
	// Accepted because charts pass them; they change nothing here.
	flag.Int("v", 0, "log level")
	flag.Bool("enable-pprof", false, "not in this stand-in")
	flag.Parse()

	if *showVersion {
		fmt.Println(os.Args[0], version)
		return
	}
	if o.kubeletPath == "" {
		log.Fatal("--kubelet-registration-path is missing")
	}
	if *mode == "kubelet-registration-probe" {
		if _, err := os.Stat(o.probeFile()); err != nil {
			log.Fatalf("the kubelet has not registered the driver yet: %v", err)
		}
		return
	}
	if err := serve(o); err != nil {
		log.Fatal(err)
	}
}

// probeFile appears beside the driver's socket with the kubelet's first call.
func (o options) probeFile() string {
	return filepath.Join(filepath.Dir(o.kubeletPath), "registration")
}

func serve(o options) error {
	name, err := driverName(o)
	if err != nil {
		return fmt.Errorf("asking the driver for its name: %w", err)
	}
	socket := filepath.Join(o.registrationPath, name+"-reg.sock")
	// A socket left by a killed registrar would make the bind fail.
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// The kubelet may look as soon as the socket is there, so its mode has to be right at birth.
	syscall.Umask(0o077)
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	log.Printf("registering %s at %s", name, socket)

	if o.httpEndpoint != "" {
		go serveHealth(o, socket)
	}
	server := grpc.NewServer()
	registration.RegisterRegistrationServer(server, &registrar{options: o, name: name})
	go func() {
		terminate := make(chan os.Signal, 1)
		signal.Notify(terminate, syscall.SIGTERM, syscall.SIGINT)
		<-terminate
		server.Stop() // closes the listener, which unlinks the socket: the kubelet deregisters the driver
	}()
	return server.Serve(listener)
}

func driverName(o options) (string, error) {
	// gRPC's own back-off grows to two minutes: too slow for a driver that is only just starting.
	patience := backoff.DefaultConfig
	patience.MaxDelay = time.Second
	connection, err := grpc.NewClient("unix://"+o.csiAddress,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: patience, MinConnectTimeout: o.timeout}))
	if err != nil {
		return "", err
	}
	defer connection.Close()
	// The official one waits for the driver without end and bounds only the call itself.
	for {
		ctx, cancel := context.WithTimeout(context.Background(), o.timeout)
		info, err := csi.NewIdentityClient(connection).GetPluginInfo(ctx, &csi.GetPluginInfoRequest{}, grpc.WaitForReady(true))
		cancel()
		if err == nil {
			return info.GetName(), nil
		}
		if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return "", err
		}
		log.Printf("still waiting for the driver at %s: %v", o.csiAddress, err)
	}
}

type registrar struct {
	registration.UnimplementedRegistrationServer
	options options
	name    string
}

func (r *registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	if probe, err := os.Create(r.options.probeFile()); err == nil {
		probe.Close()
	}
	return &registration.PluginInfo{
		Type:              registration.CSIPlugin,
		Name:              r.name,
		Endpoint:          r.options.kubeletPath,
		SupportedVersions: []string{"1.0.0"},
	}, nil
}

func (r *registrar) NotifyRegistrationStatus(_ context.Context, status *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if !status.GetPluginRegistered() {
		// The container's restart is the retry.
		log.Fatalf("the kubelet refused the driver: %s", status.GetError())
	}
	log.Printf("the kubelet registered %s", r.name)
	return &registration.RegistrationStatusResponse{}, nil
}

// serveHealth says ok while the registration socket is there.
func serveHealth(o options, socket string) {
	http.HandleFunc("/healthz", func(response http.ResponseWriter, _ *http.Request) {
		if _, err := os.Stat(socket); err != nil {
			http.Error(response, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprint(response, "ok")
	})
	log.Fatal(http.ListenAndServe(o.httpEndpoint, nil))
}
