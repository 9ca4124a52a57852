defmodule Barytherium.SpoolFilesTest do
  @moduledoc "The files of a spool: full disks, damage, and what is deleted when."
  use Barytherium.SpoolCase, async: true

  test "files that are done with are deleted", %{directory: directory} do
    {listener, url} = broker()
    client = client(directory, url: url)
    body = String.duplicate("x", 1024 * 1024)
    publish(client, List.duplicate(body, 50))
    assert length(segments(directory)) == 4
    peer = accept_connected(listener)
    confirmed(peer, 50)
    assert Client.flush(client) == :ok
    eventually(fn -> segments(directory) == [] end)
  end

  test "a directory that cannot be made is said", %{directory: directory} do
    File.write!(directory, "")
    Process.flag(:trap_exit, true)
    assert {:error, {:spool, reason}} = Client.start_link(url: nowhere(), spool: directory)
    assert reason in [:enotdir, :eexist]
  end

  describe "a full disk" do
    # Without the right to mount, a limit on the size of a file does the same.
    test "refuses what has no room, and loses nothing of what was accepted", %{
      directory: directory
    } do
      code = """
      [directory, url] = System.argv()
      {:ok, client} = Barytherium.Client.start_link(url: url, spool: directory)
      body = String.duplicate("x", 100_000)

      accept = fn accept, n ->
        case Barytherium.Client.publish_async(client, "/queue/a", "\#{n} " <> body) do
          {:ok, _reference} -> accept.(accept, n + 1)
          {:error, %{reason: reason}} -> {n, reason}
        end
      end

      {large, reason} = accept.(accept, 1)
      # There is room for a small one.
      {:ok, _reference} = Barytherium.Client.publish_async(client, "/queue/a", "\#{large} ")
      IO.puts("\#{large} \#{reason}")
      """

      {output, 0} = limited(code, [directory, nowhere()])
      assert [[_all, count, reason]] = Regex.scan(~r/^(\d+) (\w+)$/m, output)
      assert reason in ["efbig", "enospc"]
      count = String.to_integer(count)
      assert count > 5
      {listener, url} = broker()
      client = client(directory, url: url)
      peer = accept_connected(listener)
      bodies = confirmed(peer, count)
      assert for(body <- bodies, do: hd(String.split(body, " "))) == names(1..count)
      assert Client.flush(client) == :ok
    end

    # Blocks of 512 bytes in a shell of POSIX: 1 MiB. The signal is ignored, so that writing fails.
    defp limited(code, args) do
      command = ["elixir"] ++ code_path() ++ ["-e", code, "--"] ++ args
      script = ~S(trap '' XFSZ; ulimit -f 2048; exec "$@")
      System.cmd("sh", ["-c", script, "sh" | command], stderr_to_stdout: true)
    end
  end

  describe "a file that" do
    setup %{directory: directory} do
      client = client(directory)
      publish(client, names(1..10))
      Process.exit(client, :kill)

      eventually(fn -> unlocked?(Path.join(directory, "lock")) end)

      [path] = segments(directory)
      %{path: path}
    end

    # The lock ends with the task.
    defp unlocked?(path) do
      fn -> match?({:ok, _lock}, Barytherium.Native.lock_file(path)) end
      |> Task.async()
      |> Task.await()
    end

    test "was not written to its end has what was", %{directory: directory, path: path} do
      File.open!(path, [:append], &IO.binwrite(&1, <<1000::32, 0, 0>>))
      assert sent(directory, 10) == names(1..10)

      # And goes on in the next one.
      stop()
      publish(client(directory), ["11"])
      stop()
      assert sent(directory, 1) == ["11"]
    end

    test "is damaged in its first record is set aside", %{directory: directory, path: path} do
      damage(path, 30)
      publish(client(directory), ["11"])
      stop()
      assert [_set_aside] = Path.wildcard(path <> ".*.damaged")
      assert sent(directory, 1) == ["11"]
    end

    test "was cut in a record has those before", %{directory: directory, path: path} do
      bytes = File.read!(path)
      File.write!(path, binary_part(bytes, 0, byte_size(bytes) - 20))
      assert sent(directory, 9) == names(1..9)
    end

    test "is damaged has those before the damage, and the log says so", %{
      directory: directory,
      path: path
    } do
      damage(path, div(File.stat!(path).size, 2))
      bodies = sent_any(directory)
      assert bodies == names(1..length(bodies))
      assert length(bodies) in 4..5
    end

    defp sent_any(directory) do
      {listener, url} = broker()

      log =
        capture_log(fn ->
          client = client(directory, url: url)
          peer = accept_connected(listener)
          eventually(fn -> Client.status(client).publishing in 1..9 end)
          send(self(), {:sent, confirmed(peer, Client.status(client).publishing)})
          assert Client.flush(client) == :ok
        end)

      assert log =~ "were not written to their end, or are damaged"
      receive do: ({:sent, bodies} -> bodies)
    end
  end

  test "what comes after damage goes into a file of its own", %{directory: directory} do
    publish(client(directory), names(1..4))
    stop()
    [path] = segments(directory)
    damage(path, -30)
    publish(client(directory), names(5..6))
    stop()
    assert length(segments(directory)) == 2
    assert sent(directory, 5) == ["1", "2", "3", "5", "6"]
  end

  test "a path may have characters of patterns" do
    directory = Barytherium.Directory.path() <> "_[x]{y}*?"
    on_exit(fn -> File.rm_rf!(directory) end)
    publish(client(directory), ["1"])
    stop()
    assert sent(directory, 1) == ["1"]
  end

  test "files of another format are left alone, and said", %{directory: directory} do
    File.mkdir_p!(directory)
    path = Path.join(directory, "00000000000000000001.spool")
    File.write!(path, "STOMPSPL" <> <<2>> <> "something new")
    Process.flag(:trap_exit, true)

    assert Client.start_link(url: nowhere(), spool: directory) ==
             {:error, {:spool, :unknown_format}}

    assert File.exists?(path)
    # One that was not even begun.
    File.write!(path, "STOMP")
    client(directory)
  end

  test "a file that cannot be read for a while is read later", %{directory: directory} do
    {listener, url} = broker()
    client = client(directory, url: url, publish_window: 1)
    publish(client, names(1..3))
    [path] = segments(directory)
    File.rename!(path, path <> ".away")

    log =
      capture_log(fn ->
        peer = accept_connected(listener)
        assert confirmed(peer, 1) == ["1"]
        eventually(fn -> spool(client).reading? end)
        Process.sleep(50)
        File.rename!(path <> ".away", path)
        assert confirmed(peer, 2) == ["2", "3"]
        assert Client.flush(client) == :ok
        Peer.close(peer)
      end)

    assert log =~ "cannot be read or written: enoent"
  end
end
