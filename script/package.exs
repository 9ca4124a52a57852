# What script/package runs. It does not need Mix or a compiled application.
for script <- ~w(target archive cargo) do
  Code.require_file("../lib/mix/barytherium_build/#{script}.exs", __DIR__)
end

defmodule Barytherium.Build.Package do
  alias Barytherium.Build.{Archive, Cargo, Target}

  @directory "_build/package"
  @target_dir Path.expand(System.get_env("CARGO_TARGET_DIR", "_build/barytherium_cargo"))

  def main(["--checksums"]), do: main(["--checksums", @directory])
  def main(["--checksums", directory]), do: write_checksums(directory)

  def main(["-" <> _option | _more]),
    do: fail("Usage: script/package [TARGET...] | --checksums [DIR]")

  def main([]) do
    host = ok!(Cargo.host())
    check(host)
    pack(host, ok!(Cargo.build(@target_dir)))
    write_checksums(@directory)
  end

  def main(targets) do
    Enum.each(targets, &check/1)
    for target <- targets, do: pack(target, ok!(Cargo.build(@target_dir, target)))
    write_checksums(@directory)
  end

  defp check(target) do
    if target not in Target.all(), do: fail("#{target} is not one of the targets of a release.")
  end

  defp pack(target, library) do
    File.mkdir_p!(@directory)
    IO.puts(Archive.pack!(library, @directory, version(), target, licences()))
  end

  # Ours, and those of all crates.
  defp licences do
    case System.cmd(Path.expand("licences", __DIR__), ["--texts"]) do
      {texts, 0} -> File.read!("LICENSE") <> "\n================\n" <> texts
      {_texts, status} -> fail("script/licences failed (exit status #{status}).")
    end
  end

  defp write_checksums(directory) do
    path = Path.join(directory, Archive.checksum_file())

    case Archive.write_checksums!(directory, path) do
      [] -> fail("There are no archives in #{directory}.")
      names -> IO.puts("#{path}: #{length(names)} archives")
    end
  end

  # The version of mix.exs, which this does not load because that would need Mix.
  defp version do
    [_, version] = Regex.run(~r/@version "(.+)"/, File.read!("mix.exs"))
    version
  end

  defp ok!({:ok, value}), do: value
  defp ok!({:error, message}), do: fail(message)

  defp fail(message) do
    IO.puts(:stderr, message)
    System.halt(1)
  end
end

Barytherium.Build.Package.main(System.argv())
