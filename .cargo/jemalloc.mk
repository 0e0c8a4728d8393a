# GNU make reads this file before a makefile, by MAKEFILES in .cargo/config.toml; only the build of jemalloc runs make here.
#
# That build compiles each file of jemalloc three times: for the names that it prefixes, for a library without -fPIC, which is
# not linked, and for the one that is. CPU time of the build: dev 102 s without these lines, 57 s with them.
override STATIC_LIBS = $(objroot)lib/$(LIBJEMALLOC)_pic.$(A)
# The lists of headers, for which the preprocessor runs once more, are for builds that are repeated.
override CC_MM =
%.o: override CPPFLAGS += -g0
# These objects are read by nm only.
%.sym.o: override CPPFLAGS += -O0
