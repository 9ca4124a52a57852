defmodule Barytherium.SpoolTest do
  use Barytherium.SpoolCase, async: true

  alias Barytherium.{Error, TestBroker}

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
    spool = spool(client)
    assert spool.size <= 20_000
    assert %{publishing: 501} = Client.status(client)
    peer = accept_connected(listener)
    assert confirmed(peer, 300) == names(1..300)
    publish(client, names(601..700))
    assert confirmed(peer, 400) == names(301..700)
    assert Client.flush(client) == :ok
    assert %{publishing: 0} = Client.status(client)
  end

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

  defp elixir(code, args) do
    System.cmd("elixir", code_path() ++ ["-e", code, "--" | args], stderr_to_stdout: true)
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
    args = code_path() ++ ["-e", @publisher, "--"] ++ args
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

  test "a message that is not confirmed keeps only itself in memory, however many are" do
    {client, peer, _listener} = connected_client(spool: :memory)
    publish(client, ["first"])
    {headers, "first"} = expect(peer, :send)
    publish(client, names(1..5_000))
    confirmed(peer, 5_000)
    eventually(fn -> Client.status(client).publishing == 1 end)
    assert :erlang.external_size(spool(client)) < 10_000
    receipt(peer, headers)
    assert Client.flush(client) == :ok
  end

  test "a consumer that stops can still publish, and wait for that", %{directory: directory} do
    defmodule Stopping do
      use Barytherium.Consumer, subscribe: "/queue/a"

      @impl true
      def handle_connected(info, test), do: {:ok, {test, info.client}}

      @impl true
      def handle_message(_message, {test, client} = state) do
        send(test, {:handling, self(), client})
        receive do: (:go_on -> :ok)
        {:ok, _reference} = Client.publish_async(client, "/queue/b", "x", to: :nobody)
        send(test, {:flushed, Client.flush(client, 5_000)})
        {:ack, state}
      end
    end

    broker = start_supervised!(TestBroker)
    url = "stomp://127.0.0.1:#{TestBroker.port(broker)}"
    start_supervised!({Stopping, url: url, init_arg: self(), spool: directory}, id: :consumer)
    TestBroker.await_subscription(broker, "/queue/a")
    TestBroker.publish(broker, "/queue/a", "x")
    assert_receive {:handling, handler, client}
    waiting = Task.async(fn -> go_on_when_closing(client, handler) end)
    stop_supervised!(:consumer)
    Task.await(waiting)
    assert_receive {:flushed, :ok}
  end

  defp go_on_when_closing(client, handler) do
    eventually(fn -> Client.status(client).state == :closing end)
    send(handler, :go_on)
  end

  test "reports of the store show no bodies", %{directory: directory} do
    client = client(directory)
    publish(client, ["a secret"])
    store = spool(client).store
    {:status, ^store, _module, status} = :sys.get_status(store)
    refute inspect(status, limit: :infinity) =~ "a secret"
    {:status, ^client, _module, status} = :sys.get_status(client)
    refute inspect(status, limit: :infinity) =~ "a secret"
  end

  test "flush/2 waits until it is known what is in the files, and not for what could not be stored",
       %{directory: directory} do
    publish(client(directory), names(1..100))
    stop()
    client = client(directory)
    assert {:error, %Error{reason: :timeout}} = Client.flush(client, 50)
    eventually(fn -> Client.status(client).publishing == 100 end)
    stop()
    assert sent(directory, 100) == names(1..100)
    stop()

    {listener, url} = broker()
    client = client(directory, url: url)
    peer = accept_connected(listener)
    store = spool(client).store
    :sys.suspend(store)
    File.rm_rf!(directory)
    publishing = Task.async(fn -> Client.publish_async(client, "/queue/a", "x") end)
    eventually(fn -> :queue.len(spool(client).storing) == 1 end)
    flushing = Task.async(fn -> Client.flush(client) end)
    eventually(fn -> spool(client).flushes != [] end)
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
    store = spool(client).store
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
end
