defmodule Barytherium.PrecompiledTest do
  # The native library of a release. httpc has one profile for this, so the tests run one at a time.
  use ExUnit.Case, async: false

  alias Barytherium.Build.{Archive, Precompiled, Target}
  alias Barytherium.{Certificates, HttpsServer}

  @moduletag :tmp_dir
  @target "x86_64-unknown-linux-gnu"
  @linux %{architecture: "x86_64-pc-linux-gnu", nif_version: "2.16"}
  @project [version: "1.0.0", source_url: "https://example.org/barytherium"]
  @name "libbarytherium_nif-v1.0.0-nif-2.16-#{@target}.so.tar.gz"
  @hint "\nBARYTHERIUM_BUILD=1 builds the library instead, with cargo (Rust 1.91.0 or later). " <>
          "BARYTHERIUM_NIF_PATH takes one that is built already."

  setup_all do
    Mix.shell(Mix.Shell.Process)
    on_exit(fn -> Mix.shell(Mix.Shell.IO) end)
    %{localhost: Certificates.make(["localhost"]), other: Certificates.make(["localhost"])}
  end

  setup %{tmp_dir: directory} = context do
    library = Path.join(directory, "library")
    File.write!(library, "the library")
    archive = library |> Archive.pack!(directory, "1.0.0", @target, "MIT") |> File.read!()
    authorities = Certificates.write!(context.localhost, directory).cacertfile

    environment = %{
      "HEX_CACERTS_PATH" => authorities,
      "BARYTHERIUM_CACHE_PATH" => Path.join(directory, "cache")
    }

    Map.merge(context, %{archive: archive, environment: environment})
  end

  test "without a repository there is nowhere to download from",
       %{tmp_dir: directory} = context do
    checksums = Path.join(directory, "checksums.exs")
    Archive.write_checksums!(directory, checksums)
    project = [version: "1.0.0", source_url: nil]
    assert {:error, text} = Precompiled.choose(project, checksums, context.environment, @linux)
    assert text =~ "mix.exs names no repository whose releases have the library"
    assert text =~ @hint
  end

  describe "the target" do
    for {architecture, target} <- [
          {"x86_64-pc-linux-gnu", "x86_64-unknown-linux-gnu"},
          {"x86_64-redhat-linux", "x86_64-unknown-linux-gnu"},
          {"x86_64-suse-linux-gnu", "x86_64-unknown-linux-gnu"},
          {"amd64-unknown-linux-gnu", "x86_64-unknown-linux-gnu"},
          {"aarch64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"},
          {"x86_64-alpine-linux-musl", "x86_64-unknown-linux-musl"},
          {"aarch64-pc-linux-musl", "aarch64-unknown-linux-musl"},
          {"aarch64-apple-darwin23.6.0", "aarch64-apple-darwin"},
          {"x86_64-apple-darwin24.1.0", "x86_64-apple-darwin"}
        ] do
      test "of #{architecture} is #{target}" do
        assert Target.find(unquote(architecture), %{}) == {:ok, unquote(target)}
      end
    end

    test "is the device's if Nerves builds for one" do
      environment = %{"TARGET_ARCH" => "aarch64", "TARGET_OS" => "linux", "TARGET_ABI" => "musl"}

      assert Target.find("x86_64-apple-darwin23", environment) ==
               {:ok, "aarch64-unknown-linux-musl"}

      assert Target.find("x86_64-pc-linux-gnu", %{"TARGET_ABI" => ""}) == {:ok, @target}
    end

    test "is unknown for other systems" do
      for {architecture, shown} <- [
            {"riscv64-unknown-linux-gnu", "riscv64-unknown-linux-gnu"},
            {"amd64-portbld-freebsd14.1", "amd64-portbld-freebsd14.1"},
            {"win32", "win32"}
          ] do
        assert {:error, message} = Target.find(architecture, %{})

        assert message =~
                 "Barytherium has no prebuilt library for #{shown}. It has libraries for aarch64-apple-darwin, "
      end
    end
  end

  describe "the choice of an archive" do
    test "follows rustler_precompiled's names", context do
      assert {:ok, archive} = choose(context, %{})
      assert archive.name == @name
      assert archive.url == "https://example.org/barytherium/releases/download/v1.0.0/#{@name}"
      assert archive.sha256 == Archive.sha256(context.archive)
    end

    test "takes a later NIF version", context do
      for version <- ["2.16", "2.17", "2.18"] do
        assert {:ok, %{name: @name}} = choose(context, %{}, %{@linux | nif_version: version})
      end
    end

    test "refuses an earlier NIF version and another major one", context do
      for version <- ["2.15", "3.0"] do
        assert choose(context, %{}, %{@linux | nif_version: version}) ==
                 {:error,
                  "Barytherium's library is for NIF version 2.16 and later 2.x (OTP 24 and later), " <>
                    "and this Erlang/OTP has #{version}." <> @hint}
      end
    end

    test "refuses an unknown target", context do
      assert {:error, message} = choose(context, %{"TARGET_ARCH" => "riscv64"})
      assert message =~ "no prebuilt library for riscv64-unknown-linux-gnu."
      assert String.ends_with?(message, @hint)
    end

    test "refuses what the checksum file does not have", context do
      musl = String.replace(@name, "gnu", "musl")
      expected = "checksum-Elixir.Barytherium.Native.exs has no checksum for "

      assert choose(context, %{"TARGET_ABI" => "musl"}) ==
               {:error, expected <> musl <> "." <> @hint}

      newer = Keyword.put(@project, :version, "1.0.1")
      file = checksum_file(context, "sha256:" <> Archive.sha256(context.archive))

      assert Precompiled.choose(newer, file, %{}, @linux) ==
               {:error, expected <> String.replace(@name, "1.0.0", "1.0.1") <> "." <> @hint}
    end

    test "refuses a kind of checksum that it does not know", context do
      assert Precompiled.choose(@project, checksum_file(context, "md5:1"), %{}, @linux) ==
               {:error,
                "checksum-Elixir.Barytherium.Native.exs has an unknown kind of checksum for " <>
                  "#{@name}: md5:1." <> @hint}
    end

    test "refuses a checksum file that is none", context do
      path = Path.join(context.tmp_dir, "checksums.exs")
      File.write!(path, "[]")
      expected = "#{path} is not a map of checksums."
      assert Precompiled.choose(@project, path, %{}, @linux) == {:error, expected <> @hint}
      File.write!(path, "%{")
      assert {:error, message} = Precompiled.choose(@project, path, %{}, @linux)
      assert message =~ "#{path} cannot be read: "
    end
  end

  describe "the download" do
    test "is cached, and the cache is verified", context do
      port = serve(context)
      assert fetch(context, port) == {:ok, "the library"}
      assert_received {:requested, ^port, "/v1/" <> @name}
      assert_received {:mix_shell, :info, ["Downloading " <> @name]}

      assert fetch(context, port) == {:ok, "the library"}
      refute_received {:requested, _port, _path}

      cached = Path.join(context.environment["BARYTHERIUM_CACHE_PATH"], @name)
      File.write!(cached, "something else")
      assert fetch(context, port) == {:ok, "the library"}
      assert_received {:requested, ^port, _path}
      assert File.read!(cached) == context.archive
    end

    test "needs no cache", context do
      file = Path.join(context.tmp_dir, "file")
      File.write!(file, "")
      context = put_in(context.environment["BARYTHERIUM_CACHE_PATH"], Path.join(file, "cache"))
      assert fetch(context, serve(context)) == {:ok, "the library"}
    end

    test "follows a redirect to another server", context do
      other = Path.join(context.tmp_dir, "other")
      File.mkdir!(other)

      [authorities, more] =
        for {made, directory} <- [{context.localhost, context.tmp_dir}, {context.other, other}],
            do: Certificates.write!(made, directory).cacertfile

      File.write!(authorities, File.read!(more), [:append])
      storage = HttpsServer.start(context.other.server, fn _ -> {200, [], context.archive} end)
      port = redirecting(context, "https://localhost:#{storage}/elsewhere?signature=1")
      assert fetch(context, port) == {:ok, "the library"}
      assert_received {:requested, ^storage, "/elsewhere?signature=1"}
    end

    test "does not follow a redirect to a host with another's certificate", context do
      storage = serve(context)
      port = redirecting(context, "https://127.0.0.1:#{storage}/elsewhere?signature=1")

      assert fetch(context, port) ==
               {:error,
                "https://127.0.0.1:#{storage}/elsewhere could not be downloaded: the server's " <>
                  "certificate is for another host (hostname_check_failed)." <> @hint}
    end

    test "does not follow a redirect to an unencrypted URL", context do
      port = redirecting(context, "http://localhost:1/a")
      expected = "http://localhost:1/a is not an https URL, so nothing is downloaded from it."
      assert fetch(context, port) == {:error, expected <> @hint}
    end

    test "follows no more than five redirects", context do
      port = redirecting(context, "again")

      assert fetch(context, port) ==
               {:error,
                "https://localhost:#{port}/v1/again could not be downloaded: there are too many " <>
                  "redirects." <> @hint}

      for _request <- 0..5, do: assert_received({:requested, ^port, _path})
      refute_received {:requested, ^port, _path}
    end

    test "with the wrong checksum is neither used nor cached", context do
      wrong = HttpsServer.start(context.localhost.server, fn _ -> {200, [], "something else"} end)

      assert fetch(context, wrong) ==
               {:error,
                "#{@name} has the wrong checksum, so it is not used: its SHA-256 is " <>
                  "#{Archive.sha256("something else")}, and the package expects " <>
                  "#{Archive.sha256(context.archive)}." <> @hint}

      refute File.exists?(context.environment["BARYTHERIUM_CACHE_PATH"])
    end

    test "that is no archive of the library is not used", context do
      for {contents, expected} <- [
            {"no archive", "#{@name} is not a tar.gz archive: "},
            {archive_of("../../library"), "#{@name} does not contain "}
          ] do
        port = HttpsServer.start(context.localhost.server, fn _ -> {200, [], contents} end)
        assert {:error, message} = fetch(%{context | archive: contents}, port)
        assert message =~ expected
        assert String.ends_with?(message, @hint)
      end
    end

    test "fails if the server does not have it", context do
      port = HttpsServer.start(context.localhost.server, fn _ -> {404, [], "Not found"} end)
      assert fetch(context, port) == not_downloaded(port, "the server answered with status 404")
    end

    test "fails if the server refuses the connection", context do
      {:ok, listener} = :gen_tcp.listen(0, ip: {127, 0, 0, 1})
      {:ok, port} = :inet.port(listener)
      :gen_tcp.close(listener)
      assert fetch(context, port) == not_downloaded(port, "the server refuses connections")
    end

    test "fails if the server's authority is not known", context do
      port = HttpsServer.start(context.other.server, fn _ -> {200, [], context.archive} end)

      assert fetch(context, port) ==
               not_downloaded(
                 port,
                 "no authority that is trusted here has signed the server's certificate (unknown_ca)"
               )

      refute_received {:requested, _port, _path}
    end

    test "ends when it is too large", context do
      body = String.duplicate("0", 33 * 1024 * 1024)
      port = HttpsServer.start(context.localhost.server, fn _ -> {200, [], body} end)
      assert fetch(context, port) == not_downloaded(port, "it is larger than 33554432 bytes")
    end

    test "goes through a proxy, and verifies the host behind it", context do
      port = serve(context)
      proxy = HttpsServer.start_proxy(port)
      context = put_in(context.environment["HTTPS_PROXY"], "http://127.0.0.1:#{proxy}")
      assert fetch(context, 443) == {:ok, "the library"}
      assert_received {:proxied, "localhost:443"}

      File.rm_rf!(context.environment["BARYTHERIUM_CACHE_PATH"])
      assert {:error, message} = fetch(context, 443, "other.example.org")
      assert message =~ "the server's certificate is for another host (hostname_check_failed)."
      assert_received {:proxied, "other.example.org:443"}
    end

    test "needs settings that make sense", context do
      for {name, value, expected} <- [
            {"HEX_CACERTS_PATH", "/nowhere/ca.pem",
             "HEX_CACERTS_PATH names /nowhere/ca.pem, which cannot be read: no such file or directory."},
            {"HEX_CACERTS_PATH", __ENV__.file,
             "#{__ENV__.file}, which HEX_CACERTS_PATH names, has no certificate in PEM format."},
            {"HTTPS_PROXY", "proxy",
             "HTTPS_PROXY is not a URL with a host and a port, such as http://proxy:3128."},
            {"BARYTHERIUM_BASE_URL", "http://user:secret@localhost/v1/",
             "http://localhost/v1/#{@name} is not an https URL, so nothing is downloaded from it."}
          ] do
        environment = Map.put(context.environment, "BARYTHERIUM_BASE_URL", "https://localhost:1")
        environment = Map.put(environment, name, value)
        {:ok, archive} = choose(context, environment)
        assert Precompiled.fetch(archive, environment) == {:error, expected <> @hint}
      end
    end
  end

  defp serve(context),
    do: HttpsServer.start(context.localhost.server, fn _path -> {200, [], context.archive} end)

  defp redirecting(context, location) do
    HttpsServer.start(context.localhost.server, fn _path ->
      {302, [{"location", location}], ""}
    end)
  end

  defp not_downloaded(port, reason) do
    {:error, "https://localhost:#{port}/v1/#{@name} could not be downloaded: #{reason}." <> @hint}
  end

  defp fetch(context, port, host \\ "localhost") do
    environment =
      Map.put(context.environment, "BARYTHERIUM_BASE_URL", "https://#{host}:#{port}/v1/")

    {:ok, archive} = choose(context, environment)
    Precompiled.fetch(archive, environment)
  end

  defp choose(context, environment, system \\ @linux) do
    file = checksum_file(context, "sha256:" <> Archive.sha256(context.archive))
    Precompiled.choose(@project, file, environment, system)
  end

  defp checksum_file(context, checksum) do
    path = Path.join(context.tmp_dir, "checksums.exs")
    File.write!(path, inspect(%{@name => checksum}))
    path
  end

  defp archive_of(entry) do
    path = Barytherium.Directory.path() <> ".tar.gz"

    :ok =
      :erl_tar.create(String.to_charlist(path), [{String.to_charlist(entry), "x"}], [:compressed])

    contents = File.read!(path)
    File.rm!(path)
    contents
  end
end
