defmodule Barytherium.PublishAsyncTest do
  use Barytherium.ClientCase, async: true

  alias Barytherium.{Error, TestBroker}

  test "the result is a message" do
    {client, peer, _listener} = connected_client()
    {:ok, reference} = Client.publish_async(client, "/queue/a", "x", headers: [{"n", "1"}])

    assert {%{"destination" => "/queue/a", "persistent" => "true", "n" => "1"} = headers, "x"} =
             expect(peer, :send)

    refute_received {:barytherium, :published, _result}
    assert %{publishing: 1, unconfirmed: 1} = Client.status(client)
    receipt(peer, headers)
    assert_receive {:barytherium, :published, {^reference, :ok}}
    assert %{publishing: 0, unconfirmed: 0} = Client.status(client)
  end

  test "a list has one result, when all is confirmed, in whatever order" do
    {client, peer, _listener} = connected_client()
    {:ok, reference} = Client.publish_many_async(client, for(n <- 1..3, do: {"/queue/a", "#{n}"}))
    sent = for n <- 1..3, do: {elem(expect(peer, :send), 0), n}
    for {headers, _n} <- Enum.reverse(tl(sent)), do: receipt(peer, headers)
    refute_receive {:barytherium, :published, _result}, 50
    receipt(peer, sent |> hd() |> elem(0))
    assert_receive {:barytherium, :published, {^reference, :ok}}
    assert {:ok, empty} = Client.publish_many_async(client, [])
    assert_received {:barytherium, :published, {^empty, :ok}}
  end

  test "another process, or nobody, may get the result" do
    {client, peer, _listener} = connected_client()
    other = Task.async(fn -> assert_receive {:barytherium, :published, {_reference, :ok}} end)
    {:ok, _reference} = Client.publish_async(client, "/queue/a", "x", to: other.pid)
    confirm(peer, :send)
    Task.await(other)
    {:ok, _reference} = Client.publish_async(client, "/queue/a", "x", to: :nobody)
    flushing = Task.async(fn -> Client.flush(client) end)
    confirm(peer, :send)
    assert Task.await(flushing) == :ok
    refute_received {:barytherium, :published, _result}
  end

  test "publishing waits while the window is full, and goes on in order" do
    {client, peer, _listener} = connected_client(publish_window: 1_500)
    parent = self()

    publishing =
      Task.async(fn ->
        for n <- 1..20 do
          {:ok, _reference} = Client.publish_async(client, "/queue/a", "#{n}", to: parent)
          send(parent, {:accepted, n})
        end
      end)

    assert_receive {:accepted, 3}
    refute_receive {:accepted, 4}, 50

    assert {:error, %Error{reason: :not_written}} =
             Client.publish_async(client, "/queue/a", "late", timeout: 50)

    bodies = for _n <- 1..20, do: elem(confirm(peer, :send), 1)
    assert bodies == for(n <- 1..20, do: "#{n}")
    Task.await(publishing)
    assert Client.flush(client) == :ok
  end

  test "a message larger than the window is accepted alone" do
    {client, peer, _listener} = connected_client(publish_window: 1_000)
    {:ok, reference} = Client.publish_async(client, "/queue/a", String.duplicate("x", 100_000))

    assert {:error, %Error{reason: :not_written}} =
             Client.publish_async(client, "/queue/a", "y", timeout: 20)

    confirm(peer, :send)
    assert_receive {:barytherium, :published, {^reference, :ok}}
  end

  test "small messages do not overtake large ones" do
    {client, peer, _listener} = connected_client(publish_window: 100_000_000)
    sizes = for n <- 1..40, do: if(rem(n, 3) == 0, do: 2_000_000, else: 10)

    for {size, n} <- Enum.with_index(sizes) do
      body = String.pad_leading("#{n}", size)
      {:ok, _reference} = Client.publish_async(client, "/queue/a", body)
    end

    assert for(_size <- sizes, do: peer |> confirm(:send) |> elem(1) |> String.trim()) ==
             for({_size, n} <- Enum.with_index(sizes), do: "#{n}")
  end

  test "flush/2 waits for what was accepted before" do
    {client, peer, _listener} = connected_client()
    assert Client.flush(client) == :ok
    {:ok, first} = Client.publish_async(client, "/queue/a", "1")
    {first_headers, _body} = expect(peer, :send)
    assert {:error, %Error{reason: :timeout}} = Client.flush(client, 20)
    flushing = Task.async(fn -> Client.flush(client) end)
    eventually(fn -> match?([{_, _, _}], flushes(client)) end)
    {:ok, second} = Client.publish_async(client, "/queue/a", "2")
    {second_headers, _body} = expect(peer, :send)
    receipt(peer, second_headers)
    assert_receive {:barytherium, :published, {^second, :ok}}
    refute Task.yield(flushing, 20)
    receipt(peer, first_headers)
    assert Task.await(flushing) == :ok
    assert_receive {:barytherium, :published, {^first, :ok}}
  end

  defp flushes(client), do: elem(:sys.get_state(client), 1).spool.flushes

  describe "without a spool" do
    test "nothing is accepted without a connection" do
      {listener, url} = broker()
      Peer.close(listener)
      client = start_client(url, listener: self(), backoff: {60_000, 60_000})
      # It may still be connecting.
      {:ok, _reference} = Client.publish_async(client, "/queue/a", "x", to: :nobody)
      assert_receive {:barytherium, :client, {{:connection_failure, _error}, ^client}}

      assert {:error, %Error{reason: :disconnected}} =
               Client.publish_async(client, "/queue/a", "x")

      assert Client.flush(client) == :ok
    end

    test "what is accepted while the client connects is written then, or fails" do
      {listener, url} = broker()
      client = start_client(url, listener: self(), backoff: {60_000, 60_000})
      {peer, _connect} = accept(listener)
      {:ok, reference} = Client.publish_async(client, "/queue/a", "x")
      reply(peer, :connected, [{"version", "1.2"}])
      confirm(peer, :send)
      assert_receive {:barytherium, :published, {^reference, :ok}}

      {listener, url} = broker()
      client = start_client(url, backoff: {60_000, 60_000})
      {peer, _connect} = accept(listener)
      {:ok, reference} = Client.publish_async(client, "/queue/a", "x")
      Peer.close(peer)

      assert_receive {:barytherium, :published,
                      {^reference, {:error, %Error{reason: :disconnected}}}}
    end

    test "what was written fails with the connection, and only that" do
      {client, peer, listener} = connected_client()
      {:ok, first} = Client.publish_many_async(client, for(n <- 1..3, do: {"/queue/a", "#{n}"}))
      {:ok, second} = Client.publish_async(client, "/queue/a", "x")
      confirm(peer, :send)
      expect(peer, :send)
      confirm(peer, :send)
      expect(peer, :send)
      Peer.close(peer)

      assert_receive {:barytherium, :published,
                      {^first, {:error, %Error{reason: :unconfirmed}, [1]}}}

      assert_receive {:barytherium, :published, {^second, {:error, %Error{reason: :unconfirmed}}}}
      peer = accept_connected(listener)
      {:ok, third} = Client.publish_async(client, "/queue/a", "y")
      assert {_headers, "y"} = confirm(peer, :send)
      assert_receive {:barytherium, :published, {^third, :ok}}
    end

    test "an ERROR that names a message refuses only that one" do
      {client, peer, _listener} = connected_client()

      {:ok, reference} =
        Client.publish_many_async(client, for(n <- 0..2, do: {"/queue/a", "#{n}"}))

      [first, second, third] = for _n <- 1..3, do: elem(expect(peer, :send), 0)
      receipt(peer, first)
      reply(peer, :error, [{"receipt-id", second["receipt"]}, {"message", "no"}])
      receipt(peer, third)

      assert_receive {:barytherium, :published,
                      {^reference, {:error, %Error{reason: :refused}, [1]}}}
    end

    test "an ERROR that names none refuses all" do
      {client, peer, _listener} = connected_client()
      {:ok, reference} = Client.publish_async(client, "/queue/a", "x")
      expect(peer, :send)
      reply(peer, :error, [{"message", "no"}])

      assert_receive {:barytherium, :published,
                      {^reference, {:error, %Error{reason: :refused, frame: frame}}}}

      assert Frame.header(frame, "message") == "no"
    end

    test "a header that this version cannot escape fails alone" do
      {listener, url} = broker()
      client = start_client(url)
      peer = accept_connected(listener, [{"version", "1.0"}])
      good = {"/queue/a", "good"}
      bad = {"/queue/a", "bad", [{"name", "a\nb"}]}
      {:ok, mixed} = Client.publish_many_async(client, [good, bad, good])
      {:ok, other} = Client.publish_async(client, "/queue/a", "good")
      for _n <- 1..3, do: assert({_headers, "good"} = confirm(peer, :send))

      assert_receive {:barytherium, :published,
                      {^mixed, {:error, %Error{reason: :unescapable}, [1]}}}

      assert_receive {:barytherium, :published, {^other, :ok}}
    end

    test "an ERROR while such a header is at the sender ends only the connection" do
      {listener, url} = broker()
      client = start_client(url)
      peer = accept_connected(listener, [{"version", "1.0"}])
      eventually(fn -> Client.status(client).state == :connected end)
      sender = elem(:sys.get_state(client), 1).connection.sender
      :sys.suspend(sender)
      bad = [{"name", "a\nb"}]
      {:ok, first} = Client.publish_async(client, "/queue/a", "bad", headers: bad)
      {:ok, second} = Client.publish_async(client, "/queue/a", "good")
      reply(peer, :error, [{"message", "no"}])
      assert_receive {:barytherium, :published, {^first, {:error, %Error{reason: :refused}}}}
      :sys.resume(sender)

      assert_receive {:barytherium, :published,
                      {^second, {:error, %Error{reason: :disconnected}}}}

      accept_connected(listener)
    end

    test "close/2 waits for the results" do
      {client, peer, _listener} = connected_client()
      {:ok, reference} = Client.publish_async(client, "/queue/a", "x")
      closing = Task.async(fn -> Client.close(client) end)
      confirm(peer, :send)
      disconnect(peer)
      assert Task.await(closing) == :ok
      assert_received {:barytherium, :published, {^reference, :ok}}
    end

    test "a client that is stopped says that it does not know" do
      {client, peer, _listener} = connected_client()
      {:ok, reference} = Client.publish_async(client, "/queue/a", "x")
      expect(peer, :send)
      Process.unlink(client)
      Process.exit(client, :shutdown)

      assert_receive {:barytherium, :published,
                      {^reference, {:error, %Error{reason: :unconfirmed}}}}
    end
  end

  describe "with spool: :memory" do
    test "what is not confirmed is sent again on the next connection, in order" do
      {client, peer, listener} = connected_client(spool: :memory)
      {:ok, first} = Client.publish_many_async(client, for(n <- 1..3, do: {"/queue/a", "#{n}"}))
      {:ok, second} = Client.publish_async(client, "/queue/a", "4")
      confirm(peer, :send)
      expect(peer, :send)
      confirm(peer, :send)
      # Otherwise the end would be a reset, and discard receipts.
      expect(peer, :send)
      Peer.close(peer)
      eventually(fn -> Client.status(client).state != :connected end)
      {:ok, third} = Client.publish_async(client, "/queue/a", "5")
      peer = accept_connected(listener)
      assert for(_n <- 1..3, do: elem(confirm(peer, :send), 1)) == ["2", "4", "5"]

      for reference <- [first, second, third],
          do: assert_receive({:barytherium, :published, {^reference, :ok}})
    end

    test "messages are accepted before there is a connection" do
      {listener, url} = broker()
      Peer.close(listener)
      client = start_client(url, spool: :memory, listener: self())
      assert_receive {:barytherium, :client, {{:connection_failure, _error}, ^client}}
      {:ok, _reference} = Client.publish_async(client, "/queue/a", "x")
      assert %{publishing: 1} = Client.status(client)
      Process.unlink(client)
      Client.close(client)

      assert_receive {:barytherium, :published,
                      {_reference, {:error, %Error{reason: :unconfirmed}}}}
    end
  end

  test "a consumer's callback may publish without waiting, and gets the results" do
    defmodule Forwarder do
      use Barytherium.Consumer, subscribe: "/queue/a"

      @impl true
      def handle_connected(info, test), do: {:ok, {test, info.client}}

      @impl true
      def handle_message(message, {_test, client} = state) do
        {:ok, _reference} = Client.publish_async(client, "/queue/b", message.body)
        {:ack, state}
      end

      @impl true
      def handle_info({:barytherium, :published, {_reference, result}}, {test, _client} = state) do
        send(test, {:forwarded, result})
        {:ok, state}
      end
    end

    broker = start_supervised!(TestBroker)
    url = "stomp://127.0.0.1:#{TestBroker.port(broker)}"
    start_supervised!({Forwarder, url: url, init_arg: self()})
    TestBroker.await_subscription(broker, "/queue/a")
    TestBroker.publish(broker, "/queue/a", "x")
    assert_receive {:forwarded, :ok}
  end

  test "callers that have ended while they waited for room are left out" do
    {client, peer, _listener} = connected_client(publish_window: 1)
    {:ok, _reference} = Client.publish_async(client, "/queue/a", "first")
    parent = self()

    waiting =
      for body <- ["of the dead", "second"] do
        spawn(fn -> send(parent, {body, Client.publish_async(client, "/queue/a", body)}) end)
      end

    eventually(fn -> map_size(elem(:sys.get_state(client), 1).spool.blocked.entries) == 2 end)
    Process.exit(hd(waiting), :kill)
    eventually(fn -> map_size(elem(:sys.get_state(client), 1).spool.blocked.entries) == 1 end)
    assert {_headers, "first"} = confirm(peer, :send)
    assert {_headers, "second"} = confirm(peer, :send)
    assert_receive {"second", {:ok, _reference}}
    assert_silent(peer)
  end

  test "a client survives strange receipts, and messages that are not for it" do
    {client, peer, _listener} = connected_client()
    send(client, {:spool, :x})
    {:ok, reference} = Client.publish_many_async(client, [{"/queue/a", "1"}, {"/queue/a", "2"}])
    {%{"receipt" => id}, "1"} = expect(peer, :send)
    [number, "0"] = String.split(id, ".")
    reply(peer, :error, [{"receipt-id", number <> ".7"}])

    assert_receive {:barytherium, :published,
                    {^reference, {:error, %Error{reason: :refused}, [0, 1]}}}

    assert Process.alive?(client)
  end

  test "mistakes are said" do
    {client, _peer, _listener} = connected_client()

    for {text, mistake} <- [
          {"the destination is a string", fn -> Client.publish_async(client, "", "x") end},
          {"not a list of messages", fn -> Client.publish_many_async(client, :x) end},
          {"not a list of messages",
           fn -> Client.publish_many_async(client, [{"/queue/a", "x"} | :y]) end},
          {"in a transaction there is publish/4",
           fn -> Client.transaction(client, &Client.publish_async(&1, "/queue/a", "x")) end},
          {"a pid or :nobody", fn -> Client.publish_async(client, "/queue/a", "x", to: :x) end},
          {"nearest that there is: :timeout",
           fn -> Client.publish_async(client, "/queue/a", "x", timeuot: 1) end},
          {":memory or the path of a directory",
           fn -> Client.start_link(url: "stomp://a", spool: :disk) end},
          {"not a time-out", fn -> Client.flush(client, :infinity) end}
        ] do
      assert_raise ArgumentError, ~r/#{Regex.escape(text)}/, mistake
    end
  end
end
