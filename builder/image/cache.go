package image

import (
	"halogenos.internal/builder/cache"
	"halogenos.internal/builder/initramfs"
)

// openCache opens the cache, if there shall be one.
func (b *build) openCache() (err error) {
	if b.Cache == "" {
		return nil
	}
	if err := outside("cache", b.Cache, b.RootFS); err != nil {
		return err
	}
	if b.cache, err = cache.Open(b.Cache); err != nil {
		return err
	}
	b.results = b.cache.Table("searched")
	b.scanner.Results = b.results
	return nil
}

// keepResults keeps what the search has come to. A build whose cache cannot be written is
// as good as one without.
func (b *build) keepResults() {
	if b.results == nil {
		return
	}
	if err := b.results.Save(); err != nil {
		b.Progress.Note("WARNING: %v: the next build will search everything again", err)
	}
}

// compress packs an archive of the initramfs, or takes what an earlier build has made of the same. That is
// unpacked and compared.
func (b *build) compress(plain []byte) ([]byte, error) {
	if b.cache == nil {
		return initramfs.Compress(plain)
	}
	const kind = "initramfs"
	key := b.cache.KeyOf(plain)
	if packed, ok := b.cache.Get(kind, key); ok && initramfs.Holds(packed, plain) {
		return packed, nil
	}
	packed, err := initramfs.Compress(plain)
	if err != nil {
		return nil, err
	}
	if err := b.cache.Put(kind, key, packed); err != nil {
		b.Progress.Note("WARNING: %v", err)
	}
	return packed, nil
}
