defmodule Barytherium.SpoolTest do
  use Barytherium.ClientCase, async: true

  alias Barytherium.{Directory, Error, TestBroker}

  setup do
    directory = Directory.path()
    on_exit(fn -> File.rm_rf!(directory) end)
    %{directory: directory}
  end

  # Nothing listens on this port.
  defp nowhere do
    {listener, url} = broker()
    Peer.close(listener)
    url
  end

  # A client as a supervisor has it: its end does not end the test.
  defp client(directory, opts \\ []) do
    opts = Keyword.put_new_lazy(opts, :url, &nowhere/0)

    start_supervised!({Client, [spool: directory, backoff: {10, 20}] ++ opts}, restart: :temporary)
  end

  defp stop, do: stop_supervised!(Client)

  defp kill(client) do
    monitor = Process.monitor(client)
    Process.exit(client, :kill)
    assert_receive {:DOWN, ^monitor, :process, _client, :killed}
  end

  defp publish(client, bodies) do
    for body <- bodies do
      {:ok, reference} = Client.publish_async(client, "/queue/a", body)
      reference
    end
  end

  defp confirmed(peer, count), do: for(_n <- 1..count//1, do: elem(confirm(peer, :send), 1))

  defp names(range), do: Enum.map(range, &"#{&1}")

  test "what was accepted without a connection is sent when there is one, after any number of starts",
       %{directory: directory} do
    publish(client(directory), names(1..3))
    stop()
    publish(client(directory), names(4..5))
    stop()
    {listener, url} = broker()
    client = client(directory, url: url)
    peer = accept_connected(listener)
    assert confirmed(peer, 5) == names(1..5)
    assert Client.flush(client) == :ok
    # From the client that was, in this VM.
    for _n <- 1..5, do: assert_received({:barytherium, :published, {_reference, :ok}})
    closing = Task.async(fn -> Client.close(client) end)
    disconnect(peer)
    assert Task.await(closing) == :ok
    assert File.ls!(directory) == ["lock"]
  end

  test "the results come after the client was killed and started again", %{directory: directory} do
    client = client(directory)
    [first, second] = publish(client, ["1", "2"])
    kill(client)
    {listener, url} = broker()
    client(directory, url: url)
    peer = accept_connected(listener)
    assert confirmed(peer, 2) == ["1", "2"]
    assert_receive {:barytherium, :published, {^first, :ok}}
    assert_receive {:barytherium, :published, {^second, :ok}}
  end

  test "what is confirmed is not sent again", %{directory: directory} do
    {listener, url} = broker()
    client = client(directory, url: url)
    peer = accept_connected(listener)
    [_first, second, third] = publish(client, ["1", "2", "3"])
    headers = for _n <- 1..3, do: elem(expect(peer, :send), 0)
    # Not the first one: what is behind it may be sent twice.
    for %{"receipt" => id} <- tl(headers), do: reply(peer, :receipt, [{"receipt-id", id}])
    assert_receive {:barytherium, :published, {^second, :ok}}
    assert_receive {:barytherium, :published, {^third, :ok}}
    Peer.close(peer)
    peer = accept_connected(listener)
    assert confirmed(peer, 1) == ["1"]
    publish(client, ["4"])
    assert {%{}, "4"} = expect(peer, :send)
    Peer.close(peer)
    Peer.close(listener)
    stop()
    {listener, url} = broker()
    client = client(directory, url: url)
    peer = accept_connected(listener)
    assert confirmed(peer, 1) == ["4"]
    assert Client.flush(client) == :ok
  end

  test "the window bounds what is in memory, and the files have the rest", %{directory: directory} do
    {listener, url} = broker()
    client = client(directory, url: url, publish_window: 20_000)
    publish(client, names(1..500))
    {:ok, _list} = Client.publish_many_async(client, for(n <- 501..600, do: {"/queue/a", "#{n}"}))
    spool = elem(:sys.get_state(client), 1).spool
    assert spool.size <= 20_000
    assert %{publishing: 501} = Client.status(client)
    peer = accept_connected(listener)
    assert confirmed(peer, 300) == names(1..300)
    publish(client, names(601..700))
    assert confirmed(peer, 400) == names(301..700)
    assert Client.flush(client) == :ok
    assert %{publishing: 0} = Client.status(client)
  end

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

  defp segments(directory), do: Path.wildcard(Path.join(directory, "*.spool"))

  test "close/2 leaves in the files what is not written", %{directory: directory} do
    {listener, url} = broker()
    client = client(directory, url: url, publish_window: 2_000)
    publish(client, names(1..50))
    peer = accept_connected(listener)
    eventually(fn -> Client.status(client).state == :connected end)
    closing = Task.async(fn -> Client.close(client) end)
    # What is in memory is written, and nothing is read.
    sent = until_disconnect(peer, [])
    assert Task.await(closing) == :ok
    assert length(sent) in 1..20
    {listener, url} = broker()
    client = client(directory, url: url)
    peer = accept_connected(listener)
    assert sent ++ confirmed(peer, 50 - length(sent)) == names(1..50)
    assert Client.flush(client) == :ok
  end

  defp until_disconnect(peer, bodies) do
    case next_frame(peer) do
      %Frame{command: :send, body: body} = frame ->
        reply(peer, :receipt, [{"receipt-id", Frame.header(frame, "receipt")}])
        until_disconnect(peer, [body | bodies])

      %Frame{command: :disconnect} = frame ->
        reply(peer, :receipt, [{"receipt-id", Frame.header(frame, "receipt")}])
        Peer.close(peer)
        Enum.reverse(bodies)
    end
  end

  test "a directory is for one client", %{directory: directory} do
    client(directory)
    Process.flag(:trap_exit, true)
    assert Client.start_link(url: nowhere(), spool: directory) == {:error, {:spool, :locked}}

    # Also of another VM.
    code = ~s[{:ok, _lock} = Barytherium.Native.lock_file(hd(System.argv()))]
    {output, 1} = elixir(code, [Path.join(directory, "lock")])
    assert output =~ ":locked"
  end

  test "a directory that cannot be made is said", %{directory: directory} do
    File.write!(directory, "")
    Process.flag(:trap_exit, true)
    assert {:error, {:spool, reason}} = Client.start_link(url: nowhere(), spool: directory)
    assert reason in [:enotdir, :eexist]
  end

  defp elixir(code, args) do
    paths = Enum.flat_map(:code.get_path(), &["-pa", to_string(&1)])
    System.cmd("elixir", paths ++ ["-e", code, "--" | args], stderr_to_stdout: true)
  end

  # Prints the number of each message that was accepted.
  @publisher """
  [directory, url, first] = System.argv()
  {:ok, client} = Barytherium.Client.start_link(url: url, spool: directory, publish_window: 50_000)

  publish = fn publish, n ->
    messages = for n <- n..(n + rem(n, 7)), do: {"/queue/a", Integer.to_string(n)}
    {:ok, _reference} = Barytherium.Client.publish_many_async(client, messages, timeout: 60_000)
    IO.puts("accepted \#{n + rem(n, 7)}")
    publish.(publish, n + rem(n, 7) + 1)
  end

  publish.(publish, String.to_integer(first))
  """

  test "nothing that was accepted is lost when the VM is killed, and it comes in order", %{
    directory: directory
  } do
    broker = start_supervised!(TestBroker)
    url = "stomp://127.0.0.1:#{TestBroker.port(broker)}"
    subscriber = start_supervised!({Client, url: url}, id: :subscriber)
    {:ok, subscription} = Client.subscribe(subscriber, "/queue/a", ack: :auto)

    accepted =
      for lines <- [1, 300, 2_000], reduce: 0 do
        accepted -> killed_after(lines, [directory, url, "#{accepted + 1}"])
      end

    client = client(directory, url: url)
    {:ok, _reference} = Client.publish_async(client, "/queue/a", "0", to: :nobody)
    assert Client.flush(client, 20_000) == :ok
    numbers = subscription |> until("0", []) |> Enum.uniq()
    # What was accepted last may not have been printed.
    assert Enum.to_list(1..accepted) -- numbers == []
    assert Enum.drop(numbers, -1) == Enum.to_list(1..(length(numbers) - 1))
  end

  # Runs the publisher, and kills it after so many lines. Returns the last number.
  defp killed_after(lines, args) do
    paths = Enum.flat_map(:code.get_path(), &["-pa", to_string(&1)])
    args = paths ++ ["-e", @publisher, "--"] ++ args
    elixir = System.find_executable("elixir")
    options = [:binary, {:line, 100}, :exit_status, args: args]
    port = Port.open({:spawn_executable, elixir}, options)
    {:os_pid, pid} = Port.info(port, :os_pid)
    read(port, lines, "0")
    {_output, 0} = System.cmd("kill", ["-KILL", "#{pid}"])
    String.to_integer(read(port, :infinity, "0"))
  end

  defp read(_port, 0, last), do: last

  defp read(port, lines, last) do
    receive do
      {^port, {:data, {:eol, "accepted " <> number}}} ->
        read(port, if(lines == :infinity, do: lines, else: lines - 1), number)

      {^port, {:data, _log}} ->
        read(port, lines, last)

      {^port, {:exit_status, 137}} ->
        last
    end
  end

  defp until(subscription, last, numbers) do
    assert_receive {:barytherium, :messages, {frames, ^subscription}}, 20_000
    numbers = Enum.reduce(frames, numbers, &[&1.body | &2])

    if hd(numbers) == last,
      do: numbers |> Enum.reverse() |> Enum.map(&String.to_integer/1),
      else: until(subscription, last, numbers)
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
      paths = Enum.flat_map(:code.get_path(), &["-pa", to_string(&1)])
      command = ["elixir"] ++ paths ++ ["-e", code, "--"] ++ args
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

    defp sent(directory, count) do
      {listener, url} = broker()
      client = client(directory, url: url)
      peer = accept_connected(listener)
      bodies = confirmed(peer, count)
      assert Client.flush(client) == :ok
      # The client's end waits for nobody then.
      Peer.close(peer)
      bodies
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
      <<before::binary-size(30), byte, rest::binary>> = File.read!(path)
      File.write!(path, [before, Bitwise.bxor(byte, 1), rest])
      publish(client(directory), ["11"])
      stop()
      assert File.exists?(path <> ".damaged")
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
      bytes = File.read!(path)
      at = div(byte_size(bytes), 2)
      <<before::binary-size(at), byte, rest::binary>> = bytes
      File.write!(path, [before, Bitwise.bxor(byte, 1), rest])
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
    bytes = File.read!(path)
    size = byte_size(bytes) - 30
    <<before::binary-size(size), byte, rest::binary>> = bytes
    File.write!(path, [before, Bitwise.bxor(byte, 1), rest])
    publish(client(directory), names(5..6))
    stop()
    assert length(segments(directory)) == 2
    assert sent(directory, 5) == ["1", "2", "3", "5", "6"]
  end

  test "reports of the store show no bodies", %{directory: directory} do
    client = client(directory)
    publish(client, ["a secret"])
    store = elem(:sys.get_state(client), 1).spool.store
    {:status, ^store, _module, status} = :sys.get_status(store)
    refute inspect(status, limit: :infinity) =~ "a secret"
    {:status, ^client, _module, status} = :sys.get_status(client)
    refute inspect(status, limit: :infinity) =~ "a secret"
  end

  test "a path may have characters of patterns" do
    directory = Directory.path() <> "_[x]{y}*?"
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

  test "flush/2 waits until it is known what is in the files, and not for what could not be stored",
       %{directory: directory} do
    publish(client(directory), names(1..100))
    stop()
    client = client(directory)
    assert {:error, %Error{reason: :timeout}} = Client.flush(client, 50)
    assert %{publishing: 100} = Client.status(client)
    stop()
    assert sent(directory, 100) == names(1..100)
    stop()

    {listener, url} = broker()
    client = client(directory, url: url)
    peer = accept_connected(listener)
    store = elem(:sys.get_state(client), 1).spool.store
    :sys.suspend(store)
    File.rm_rf!(directory)
    publishing = Task.async(fn -> Client.publish_async(client, "/queue/a", "x") end)
    eventually(fn -> :queue.len(elem(:sys.get_state(client), 1).spool.storing) == 1 end)
    flushing = Task.async(fn -> Client.flush(client) end)
    eventually(fn -> elem(:sys.get_state(client), 1).spool.flushes != [] end)
    :sys.resume(store)
    assert {:error, %Error{reason: :enoent}} = Task.await(publishing)
    assert Task.await(flushing) == :ok
    Peer.close(peer)
  end

  test "what was noted as confirmed stays so, however often the client is killed", %{
    directory: directory
  } do
    {listener, url} = broker()
    client = client(directory, url: url)
    peer = accept_connected(listener)
    publish(client, names(1..10))
    confirmed(peer, 9)
    expect(peer, :send)
    store = elem(:sys.get_state(client), 1).spool.store
    eventually(fn -> :sys.get_state(store).noted == 10 end)
    Peer.close(peer)
    Peer.close(listener)

    kill(client)

    for _n <- 1..3 do
      client = client(directory)
      eventually(fn -> Client.status(client).publishing == 1 end)
      kill(client)
    end

    assert sent(directory, 1) == ["10"]
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
        eventually(fn -> elem(:sys.get_state(client), 1).spool.reading? end)
        Process.sleep(50)
        File.rename!(path <> ".away", path)
        assert confirmed(peer, 2) == ["2", "3"]
        assert Client.flush(client) == :ok
        Peer.close(peer)
      end)

    assert log =~ "cannot be read or written: enoent"
  end
end
