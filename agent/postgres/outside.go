package postgres

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lictor-ha/lictor/agent/fence"
)

// This file is about what lies outside of the data directory and belongs to it: its WAL
// and its tablespaces, to which it has links. It goes with the data directory, by the same
// rules (design 5.20): what does not look like this very cluster's stays, and with
// it the whole data directory. Everything is done through one handle of the directory, so
// that a link which is changed meanwhile leads nowhere else, and with the rights of
// PostgreSQL's user.

// outside is a directory to which the data directory has a link.
type outside struct {
	link  string
	path  string // where it really is
	root  *os.Root
	names []string // of what is this cluster's in it
}

var (
	walNames = regexp.MustCompile(`^([0-9A-F]{24}(\.partial|\.[0-9A-F]{8}\.backup)?|[0-9A-F]{8}\.history|archive_status|summaries|xlogtemp\.[0-9]+|pgsql_tmp\..*|RECOVERYXLOG|RECOVERYHISTORY)$`)
	segment  = regexp.MustCompile(`^[0-9A-F]{24}$`)
)

// outsides finds what lies outside, and refuses what may be somebody else's. What is not
// its own according to owns is only told of. systemIdentifier is the cluster's; empty: not
// known.
func (p *dataDirectory) outsides(systemIdentifier string, owns func(path string) bool) (found []outside, err error) {
	defer func() {
		if err != nil {
			closeOutsides(found)
			found = nil
		}
	}()
	spaces, err := p.tablespaceLinks()
	if err != nil {
		return nil, err
	}
	for _, link := range append(spaces, p.inData("pg_wal")) {
		if !isLink(link) {
			continue // not there, or in the data directory
		}
		path, err := p.disk.EvalSymlinks(link)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if !owns(path) {
			p.log.Warn().Str("link", link).Str("path", path).Msg("left as it is, as a method made the link; empty it yourself if it was meant for this member")
			continue
		}
		root, err := p.disk.OpenRoot(link)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return found, fmt.Errorf("%s: %w", link, err)
		}
		o := outside{link: link, root: root}
		found = append(found, o)
		last := &found[len(found)-1]
		err = p.claim(last, systemIdentifier)
		if err == nil && !owns(last.path) {
			err = errors.New("it was changed meanwhile")
		}
		if err == nil {
			err = mountedIn(last.path)
		}
		if err != nil {
			return found, fmt.Errorf("%s leads to %s, which is not to be emptied: %w; empty it yourself, or remove the link", link, last.path, err)
		}
	}
	return found, nil
}

// tablespaceLinks are the paths of what may be links to tablespaces.
func (p *dataDirectory) tablespaceLinks() ([]string, error) {
	spaces, err := p.disk.ReadDir(p.inData("pg_tblspc"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("tablespaces: %w", err)
	}
	var links []string
	for _, e := range spaces {
		if _, err := strconv.ParseUint(e.Name(), 10, 32); err == nil {
			links = append(links, filepath.Join(p.inData("pg_tblspc"), e.Name()))
		}
	}
	return links, nil
}

func isLink(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode()&fs.ModeSymlink != 0
}

func closeOutsides(list []outside) {
	for _, o := range list {
		_ = o.root.Close()
	}
}

// claim finds out what of a directory is this cluster's.
func (p *dataDirectory) claim(o *outside, systemIdentifier string) error {
	var dir *os.File
	err := p.disk.Do(func() (err error) { dir, err = o.root.Open("."); return err })
	if err != nil {
		return err
	}
	defer dir.Close()
	if o.path, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", dir.Fd())); err != nil {
		return fmt.Errorf("finding out where it is: %w", err)
	}
	data, err := filepath.EvalSymlinks(p.dataDir)
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	if beneath(o.path, data) && o.path != data {
		return nil // it goes with the data directory
	}
	if state, err := filepath.EvalSymlinks(p.stateDir); beneath(data, o.path) || err == nil && beneath(state, o.path) {
		return errors.New("the data directory or the agent's own files are in it")
	}
	for above := o.path; ; above = filepath.Dir(above) {
		switch cluster, err := there(p.disk.Lstat, filepath.Join(above, "PG_VERSION")); {
		case err != nil && !errors.Is(err, fs.ErrPermission): // what PostgreSQL cannot look into is none of its
			return err
		case cluster:
			return fmt.Errorf("it belongs to another data directory, %s", above)
		}
		if above == filepath.Dir(above) {
			break
		}
	}
	if mine, err := p.sameOwner(dir, data); err != nil || !mine {
		return errors.Join(err, errors.New("it does not belong to PostgreSQL's user"))
	}
	if why := p.usedByOthers(o.path); why != "" {
		return errors.New(why)
	}
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return err
	}
	if filepath.Base(o.link) != "pg_wal" {
		for _, e := range entries {
			if e.IsDir() && p.inTablespace(e.Name()) {
				o.names = append(o.names, e.Name())
			}
		}
		return nil
	}
	for _, e := range entries {
		switch name := e.Name(); {
		case name == "lost+found":
		case !walNames.MatchString(name):
			return fmt.Errorf("it holds %s, which is no WAL", name)
		case segment.MatchString(name) && systemIdentifier != "":
			if id := p.segmentOf(o.root, name); id != "" && id != systemIdentifier {
				return fmt.Errorf("its WAL is that of another cluster (system identifier %s)", id)
			}
			o.names = append(o.names, name)
		default:
			o.names = append(o.names, name)
		}
	}
	return nil
}

// inTablespace reports whether a name in a tablespace is that of our PostgreSQL's files.
func (p *dataDirectory) inTablespace(name string) bool {
	catalog, ours := strings.CutPrefix(name, fmt.Sprintf("PG_%d_", p.major))
	_, err := strconv.ParseUint(catalog, 10, 64)
	return ours && err == nil
}

// beneath reports whether a path is a directory or lies in it.
func beneath(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

func (p *dataDirectory) sameOwner(dir *os.File, data string) (bool, error) {
	a, err := dir.Stat()
	if err != nil {
		return false, err
	}
	b, err := p.disk.Stat(data)
	if err != nil {
		return false, fmt.Errorf("data directory: %w", err)
	}
	return a.Sys().(*syscall.Stat_t).Uid == b.Sys().(*syscall.Stat_t).Uid, nil
}

// segmentOf is the system identifier in the first page of a WAL segment, empty when there
// is none (src/include/access/xlog_internal.h, XLogLongPageHeaderData).
func (p *dataDirectory) segmentOf(root *os.Root, name string) (id string) {
	_ = p.disk.Do(func() error { id = segmentIn(root, name); return nil })
	return id
}

func segmentIn(root *os.Root, name string) string {
	const longHeader, longFlag = 32, 2
	f, err := root.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close()
	head := make([]byte, longHeader)
	if n, err := f.Read(head); err != nil || n < longHeader || binary.NativeEndian.Uint16(head[2:])&longFlag == 0 {
		return ""
	}
	return strconv.FormatUint(binary.NativeEndian.Uint64(head[24:]), 10)
}

// usedByOthers says which PostgreSQL of another data directory uses a directory: it has a
// file open there, or its data directory leads there, too, or may; empty: there is none.
func (p *dataDirectory) usedByOthers(dir string) string {
	const uses = "another PostgreSQL (pid %d) uses it"
	all := p.otherPostgres()
	if at, err := p.disk.Stat(dir); err == nil {
		for _, process := range neighbours(all) {
			switch leads, answered := p.leadsTo(process, at, removalWithin); {
			case leads:
				return fmt.Sprintf(uses, pidIn(process))
			case !answered:
				return fmt.Sprintf("another PostgreSQL (pid %d), whose disk does not answer, may use it", pidIn(process))
			}
		}
	}
	for _, process := range all {
		files, _ := filepath.Glob(process + "/fd/*")
		if slices.ContainsFunc(files, func(f string) bool { to, err := os.Readlink(f); return err == nil && beneath(to, dir) }) {
			return fmt.Sprintf(uses, pidIn(process))
		}
	}
	return ""
}

// otherPostgres are the processes of PostgreSQLs of other data directories, by their
// directories in /proc.
func (p *dataDirectory) otherPostgres() []string {
	data, _ := filepath.EvalSymlinks(p.dataDir)
	processes, _ := filepath.Glob("/proc/[0-9]*")
	return slices.DeleteFunc(processes, func(process string) bool {
		pid := pidIn(process)
		cwd, err := os.Readlink(process + "/cwd")
		return err != nil || cwd == data || pid == os.Getpid() || !fence.IsPostgres(pid)
	})
}

// neighbours are one process of each data directory.
func neighbours(processes []string) []string {
	seen := map[string]bool{}
	return slices.DeleteFunc(slices.Clone(processes), func(process string) bool {
		cwd, err := os.Readlink(process + "/cwd")
		was := seen[cwd]
		seen[cwd] = true
		return err != nil || was
	})
}

func pidIn(process string) int {
	pid, _ := strconv.Atoi(filepath.Base(process))
	return pid
}

// How long a look at another PostgreSQL's data directory may take. A disk of its that hangs
// holds up no start; but nothing is emptied that it may use.
const (
	startWithin   = 500 * time.Millisecond
	removalWithin = 5 * time.Second
)

// leadsTo reports whether the data directory in which a process works leads to a directory,
// though it may have no file open there, and whether its disk has answered within a limit.
func (p *dataDirectory) leadsTo(process string, dir fs.FileInfo, within time.Duration) (leads, answered bool) {
	answer := make(chan bool, 1)
	go func() { // ends when the kernel answers
		links, _ := p.disk.Glob(process + "/cwd/pg_tblspc/*")
		answer <- slices.ContainsFunc(append(links, process+"/cwd/pg_wal"), func(link string) bool {
			at, err := p.disk.Stat(link)
			return err == nil && os.SameFile(at, dir)
		})
	}()
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case leads := <-answer:
		return leads, true
	case <-timer.C:
		return false, false
	}
}

// refuseShared refuses to start PostgreSQL on WAL or tablespaces that a running PostgreSQL
// of another data directory has: whoever has copied that one by hand has copied its links.
func (p *dataDirectory) refuseShared() error {
	links, err := p.linksOut()
	if err != nil || len(links) == 0 {
		return err
	}
	others := neighbours(p.otherPostgres())
	for _, link := range links {
		dir, err := p.disk.Stat(link)
		if err != nil {
			continue // PostgreSQL says so itself
		}
		for _, process := range others {
			if leads, _ := p.leadsTo(process, dir, startWithin); leads {
				return fmt.Errorf("%s leads to what another PostgreSQL (pid %d) uses: copy it into a directory of this member's own, and change the link", link, pidIn(process))
			}
		}
	}
	return nil
}

// emptyOutside removes what is this cluster's in the directories to which it has links.
func (p *dataDirectory) emptyOutside(list []outside) error {
	for _, o := range list {
		for _, name := range o.names {
			if err := p.disk.Do(func() error { return o.root.RemoveAll(name) }); err != nil {
				return fmt.Errorf("emptying %s, to which %s leads: %w", o.path, o.link, err)
			}
		}
		if len(o.names) > 0 {
			p.log.Warn().Str("link", o.link).Str("path", o.path).Msg("emptied with the data directory that leads to it")
		}
	}
	return nil
}

// mayEmpty says why the data directory cannot be emptied, before anything of it is, and
// which directories would be emptied with it.
func (p *dataDirectory) mayEmpty(systemIdentifier string) (own []string, err error) {
	if err := mayRemove(p.dataDir); err != nil {
		return nil, err
	}
	list, err := p.outsides(systemIdentifier, everything)
	defer closeOutsides(list)
	for _, o := range list {
		own = append(own, o.path)
	}
	return own, err
}
