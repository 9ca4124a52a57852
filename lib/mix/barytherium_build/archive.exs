defmodule Barytherium.Build.Archive do
  @moduledoc false
  # The archives of a release, and the checksum file that the package carries. Names and formats are
  # those of `rustler_precompiled`, so its users know them already.

  alias Barytherium.Build.Target

  @crate "barytherium_nif"
  @checksum_file "checksum-Elixir.Barytherium.Native.exs"

  def checksum_file, do: @checksum_file

  @doc "The name of the archive. The library in it has the same name without `.tar.gz`."
  @spec name(version :: String.t(), target :: String.t()) :: String.t()
  def name(version, target), do: library_name(version, target) <> ".tar.gz"

  # The VM looks for `.so` on macOS too.
  defp library_name(version, target),
    do: "lib#{@crate}-v#{version}-nif-#{Target.nif_version()}-#{target}.so"

  @spec sha256(binary()) :: String.t()
  def sha256(bytes), do: :sha256 |> :crypto.hash(bytes) |> Base.encode16(case: :lower)

  @doc "Reads a checksum file: a map of archive names to `\"sha256:...\"`."
  @spec read_checksums(Path.t()) :: {:ok, map()} | {:error, String.t()}
  def read_checksums(path) do
    case Code.eval_file(path) do
      {%{} = checksums, _binding} -> {:ok, checksums}
      {_other, _binding} -> {:error, "#{path} is not a map of checksums."}
    end
  rescue
    error -> {:error, "#{path} cannot be read: #{Exception.message(error)}"}
  end

  @doc "The SHA-256 that the archive has to have."
  @spec expected(map(), String.t()) :: {:ok, String.t()} | {:error, String.t()}
  def expected(checksums, name) do
    case checksums do
      %{^name => "sha256:" <> digest} ->
        {:ok, digest}

      %{^name => other} ->
        {:error, "#{@checksum_file} has an unknown kind of checksum for #{name}: #{other}."}

      _missing ->
        {:error, "#{@checksum_file} has no checksum for #{name}."}
    end
  end

  @spec verify(binary(), String.t(), String.t()) :: :ok | {:error, String.t()}
  def verify(bytes, name, expected) do
    case sha256(bytes) do
      ^expected ->
        :ok

      found ->
        {:error,
         "#{name} has the wrong checksum, so it is not used: its SHA-256 is #{found}, and the " <>
           "package expects #{expected}."}
    end
  end

  @doc """
  The library in a verified archive.

  It is unpacked in memory, and nothing else in the archive is looked at. So no path in the archive
  matters.
  """
  @spec unpack(binary(), String.t()) :: {:ok, binary()} | {:error, String.t()}
  def unpack(bytes, name) do
    library = name |> String.replace_suffix(".tar.gz", "") |> String.to_charlist()

    case :erl_tar.extract({:binary, bytes}, [:memory, :compressed, files: [library]]) do
      {:ok, [{^library, contents}]} -> {:ok, contents}
      {:ok, _other} -> {:error, "#{name} does not contain #{library}."}
      {:error, reason} -> {:error, "#{name} is not a tar.gz archive: #{inspect(reason)}."}
    end
  end

  @doc """
  Writes the archive of a library and the licences of its crates. The same input makes the same bytes, whoever
  packs it and when.
  """
  @spec pack!(Path.t(), Path.t(), String.t(), String.t(), licences :: binary()) :: Path.t()
  def pack!(library, directory, version, target, licences) do
    archive = Path.join(directory, name(version, target))
    entry = version |> library_name(target) |> String.to_charlist()
    tar = archive <> ".tar"
    # By default the times would be those of the packing.
    options = [mtime: 0, atime: 0, ctime: 0, uid: 0, gid: 0]
    {:ok, writer} = :erl_tar.open(String.to_charlist(tar), [:write])
    :ok = :erl_tar.add(writer, File.read!(library), entry, options)
    :ok = :erl_tar.add(writer, licences, ~c"LICENCES.txt", options)
    :ok = :erl_tar.close(writer)
    # The header of gzip has no time, since zlib writes 0.
    File.write!(archive, tar |> File.read!() |> :zlib.gzip())
    File.rm!(tar)
    archive
  end

  @doc "Writes the checksum file for all archives in the directory. Returns their names."
  @spec write_checksums!(Path.t(), Path.t()) :: [String.t()]
  def write_checksums!(directory, path) do
    archives = directory |> Path.join("*.tar.gz") |> Path.wildcard() |> Enum.sort()

    lines =
      for archive <- archives do
        digest = archive |> File.read!() |> sha256()
        "  #{inspect(Path.basename(archive))} => \"sha256:#{digest}\",\n"
      end

    if archives != [], do: File.write!(path, ["%{\n", lines, "}\n"])
    Enum.map(archives, &Path.basename/1)
  end
end
