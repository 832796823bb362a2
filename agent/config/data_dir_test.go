package config

import "testing"

// The proc file system does not know when a directory was made.
func TestDataDirOfUnknownAge(t *testing.T) {
	if tellsBirth("/proc/sys") || !tellsBirth("/nowhere/at/all") {
		t.Error("which file systems tell the age of a directory")
	}
	v := &validation{}
	v.dataDir("/proc/sys")
	if len(v.warnings) != 1 || v.warnings[0].Path != "postgresql.data_dir" {
		t.Errorf("%+v", v.warnings)
	}
}
