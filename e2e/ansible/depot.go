package ansible

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// depot serves a directory to the hosts over HTTP, as the package and download
// servers of a real site do.
type depot struct {
	dir, url string
	server   *http.Server
	done     chan error
}

// newDepot serves a new directory of the site's at the bridge's address.
func newDepot(ctx context.Context, s *site) (*depot, error) {
	d := &depot{dir: filepath.Join(s.dir, "depot"), done: make(chan error, 1)}
	if err := os.Mkdir(d.dir, 0o755); err != nil { //nolint:gosec // all hosts may read it
		return nil, err
	}
	listener, err := inside(s, func() (net.Listener, error) { return new(net.ListenConfig).Listen(ctx, "tcp", "10.77.0.1:0") })
	if err != nil {
		return nil, err
	}
	d.url = "http://" + listener.Addr().String()
	d.server = &http.Server{Handler: http.FileServer(http.Dir(d.dir)), ReadHeaderTimeout: 10 * time.Second}
	go func() { d.done <- d.server.Serve(listener) }()
	return d, nil
}

func (d *depot) close() error {
	err := d.server.Close()
	if served := <-d.done; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

// zip puts a program into the depot as HashiCorp publishes it. It returns the
// archive's checksum as Ansible wants it.
func (d *depot) zip(archive, name, program string) (checksum string, err error) {
	text, err := os.ReadFile(program)
	if err != nil {
		return "", err
	}
	var packed bytes.Buffer
	w := zip.NewWriter(&packed)
	header := &zip.FileHeader{Name: name, Method: zip.Store}
	header.SetMode(0o755)
	entry, err := w.CreateHeader(header)
	if err == nil {
		_, err = entry.Write(text)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		return "", err
	}
	return fmt.Sprintf("sha256:%x", sha256.Sum256(packed.Bytes())), os.WriteFile(filepath.Join(d.dir, archive), packed.Bytes(), 0o600)
}

// debs makes the depot a repository of these packages
// (https://wiki.debian.org/DebianRepository/Format#Flat_Repository_Format).
func (d *depot) debs(ctx context.Context, files ...string) error {
	var index strings.Builder
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		control, err := output(ctx, commandTimeout, "dpkg-deb", "--field", file)
		if err != nil {
			return err
		}
		name := filepath.Base(file)
		fmt.Fprintf(&index, "%s\nFilename: ./%s\nSize: %d\nSHA256: %x\n\n", control, name, len(text), sha256.Sum256(text))
		if err := os.WriteFile(filepath.Join(d.dir, name), text, 0o600); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(d.dir, "Packages"), []byte(index.String()), 0o600)
}
