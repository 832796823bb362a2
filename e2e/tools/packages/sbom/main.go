// Command sbom writes a CycloneDX bill of materials of a Go binary: the modules
// that the linker put into it, as recorded in the binary itself (debug/buildinfo,
// what `go version -m` prints), so that it can name nothing that is not in there.
//
//	sbom -name lictor -version 0.1.0 BINARY > BINARY.cdx.json
//
// The same binary gives the same bytes: no time, no random serial number.
package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

func main() {
	name := flag.String("name", "", "name of the program")
	version := flag.String("version", "", "its version")
	flag.Parse()
	if flag.NArg() != 1 || *name == "" || *version == "" {
		fmt.Fprintln(os.Stderr, "usage: sbom -name NAME -version VERSION BINARY")
		os.Exit(2)
	}
	if err := write(os.Stdout, *name, *version, flag.Arg(0)); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

func write(out io.Writer, name, version, path string) error {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return fmt.Errorf("what %s was built from: %w", path, err)
	}
	binary, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(binary)
	self := component(cdx.ComponentTypeApplication, name, version, purl(info.Main.Path, version))
	self.Hashes = &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: hex.EncodeToString(sum[:])}}
	self.Properties = buildSettings(info)

	goVersion := strings.TrimPrefix(info.GoVersion, "go")
	std := component(cdx.ComponentTypeLibrary, "std", goVersion, "pkg:golang/std@"+goVersion)
	components := []cdx.Component{std}
	refs := []string{std.BOMRef}
	for _, m := range info.Deps {
		c := module(m)
		components = append(components, c)
		refs = append(refs, c.BOMRef)
	}

	bom := cdx.NewBOM()
	bom.Metadata = &cdx.Metadata{Component: &self}
	bom.Components = &components
	bom.Dependencies = &[]cdx.Dependency{{Ref: self.BOMRef, Dependencies: &refs}}
	return cdx.NewBOMEncoder(out, cdx.BOMFileFormatJSON).SetPretty(true).Encode(bom)
}

// module describes a module that is linked in; one that a replace directive puts
// in the place of another is what really is in the binary.
func module(m *debug.Module) cdx.Component {
	if m.Replace != nil {
		m = m.Replace
	}
	c := component(cdx.ComponentTypeLibrary, m.Path, m.Version, purl(m.Path, m.Version))
	if m.Sum == "" {
		return c
	}
	// go.sum's h1: is the SHA-256 of the module's file list, in base64; CycloneDX
	// has hashes of files only, so it is kept as what it is.
	c.Properties = &[]cdx.Property{{Name: "golang:h1", Value: m.Sum}}
	return c
}

func component(kind cdx.ComponentType, name, version, purl string) cdx.Component {
	return cdx.Component{Type: kind, BOMRef: purl, Name: name, Version: version, PackageURL: purl}
}

// purl is the package URL of a Go module (package-url/purl-spec, type golang).
func purl(path, version string) string {
	return "pkg:golang/" + path + "@" + strings.ReplaceAll(version, "+", "%2B")
}

// buildSettings are the settings that change what is in the binary.
func buildSettings(info *buildinfo.BuildInfo) *[]cdx.Property {
	var properties []cdx.Property
	for _, s := range info.Settings {
		switch s.Key {
		case "GOOS", "GOARCH", "GOAMD64", "GOARM64", "CGO_ENABLED", "-trimpath", "-tags":
			properties = append(properties, cdx.Property{Name: "golang:build:" + s.Key, Value: s.Value})
		}
	}
	return &properties
}
