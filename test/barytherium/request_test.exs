defmodule Barytherium.RequestTest do
  @moduledoc "Requests and replies, with a scripted broker, and with the one for tests of users."
  use Barytherium.ClientCase, async: true

  alias Barytherium.TestBroker

  defmodule Prices do
    use Barytherium.Consumer, subscribe: "/queue/prices"

    @impl true
    def handle_message(%{body: "none"}, state), do: {:ack, state}

    def handle_message(frame, state) do
      times = if frame.body == "twice", do: 2, else: 1
      for _n <- 1..times, do: :ok = Barytherium.Consumer.reply(frame, "#{frame.body}: 12.50")
      {:ack, state}
    end
  end

  defp client(opts) do
    client = start_supervised!({Client, opts}, id: make_ref())
    eventually(fn -> Client.status(client).state == :connected end)
    client
  end

  defp request(client, opts \\ []),
    do: Task.async(fn -> Client.request(client, "/queue/prices", "a", opts) end)

  # A client, and the broker's side of its connection.
  defp connected(headers \\ [{"version", "1.2"}]) do
    {listener, url} = broker()
    client = start_supervised!({Client, url: url, backoff: {20, 100}})
    {client, accept_connected(listener, headers), listener}
  end

  describe "a request" do
    test "subscribes to its temporary queue once, and names it and itself" do
      {client, peer, _listener} = connected()
      first = request(client, headers: [{"a", "b"}])
      {subscribe, ""} = expect(peer, :subscribe)
      assert %{"destination" => "/temp-queue/replies", "ack" => "auto"} = subscribe
      {send, "a"} = expect(peer, :send)
      assert %{"reply-to" => "/temp-queue/replies", "correlation-id" => id, "a" => "b"} = send
      refute Map.has_key?(send, "receipt") or Map.has_key?(send, "persistent")

      second = request(client)
      {%{"correlation-id" => other}, "a"} = expect(peer, :send)
      assert other != id
      # In another order.
      message(peer, subscribe["id"], "second", [{"correlation-id", other}])
      assert {:ok, %Frame{body: "second"}} = Task.await(second)
      message(peer, subscribe["id"], "first", [{"correlation-id", id}])
      assert {:ok, %Frame{body: "first"}} = Task.await(first)
    end

    test "subscribes to nothing on RabbitMQ, but to a queue of one's own" do
      {client, peer, _listener} = connected([{"version", "1.2"}, {"server", "RabbitMQ/3.10.8"}])
      asking = request(client)
      {%{"correlation-id" => id}, "a"} = expect(peer, :send)
      message(peer, "/temp-queue/replies", "b", [{"correlation-id", id}])
      assert {:ok, %Frame{body: "b"}} = Task.await(asking)

      asking = request(client, reply_to: "/queue/mine")
      assert {%{"destination" => "/queue/mine", "id" => id}, ""} = expect(peer, :subscribe)
      {%{"reply-to" => "/queue/mine", "correlation-id" => correlation}, "a"} = expect(peer, :send)
      message(peer, id, "c", [{"correlation-id", correlation}])
      assert {:ok, %Frame{body: "c"}} = Task.await(asking)
    end

    test "whose reply is late, doubled, or somebody else's gets none, and nobody else does" do
      {client, peer, _listener} = connected()
      assert {:error, %{reason: :timeout}} = Task.await(request(client, timeout: 50))
      {%{"id" => subscription}, ""} = expect(peer, :subscribe)
      {%{"correlation-id" => late}, "a"} = expect(peer, :send)

      asking = request(client)
      {%{"correlation-id" => id}, "a"} = expect(peer, :send)
      for other <- [late, "x" <> id, id <> "0", "-1"], do: answer(peer, subscription, other, "no")
      answer(peer, subscription, id, "yes")
      answer(peer, subscription, id, "again")
      assert {:ok, %Frame{body: "yes"}} = Task.await(asking)

      # A reply to what is no request: the receipt of a message.
      [token, number] = String.split(id, "-")
      publishing = Task.async(fn -> Client.publish(client, "/queue/a", "") end)
      {%{"receipt" => receipt}, ""} = expect(peer, :send)
      answer(peer, subscription, "#{token}-#{String.to_integer(number) + 1}", "no")
      reply(peer, :receipt, [{"receipt-id", receipt}])
      assert Task.await(publishing) == :ok
    end

    defp answer(peer, subscription, id, body),
      do: message(peer, subscription, body, [{"correlation-id", id}])

    test "ends with its connection, and the next one works" do
      {client, peer, listener} = connected()
      asking = request(client)
      expect(peer, :subscribe)
      expect(peer, :send)
      Peer.close(peer)
      assert {:error, %{reason: :unconfirmed}} = Task.await(asking)
      peer = accept_connected(listener)
      asking = request(client, wait: true)
      {%{"id" => subscription}, ""} = expect(peer, :subscribe)
      {%{"correlation-id" => id}, "a"} = expect(peer, :send)
      answer(peer, subscription, id, "b")
      assert {:ok, %Frame{body: "b"}} = Task.await(asking)
    end

    test "that cannot be written leaves the next one its subscription" do
      {client, peer, _listener} = connected([{"version", "1.0"}])
      opts = [headers: [{"a", "b\nc"}]]
      assert {:error, %{reason: :unescapable}} = Task.await(request(client, opts))
      asking = request(client)
      {%{"id" => subscription}, ""} = expect(peer, :subscribe)
      {%{"correlation-id" => id}, "a"} = expect(peer, :send)
      answer(peer, subscription, " " <> id, "b")
      assert {:ok, %Frame{body: "b"}} = Task.await(asking)
    end

    test "is not answered by itself, that comes late to a subscription that has ended" do
      {client, peer, _listener} = connected()
      {subscription, %{"id" => mine}} = subscribed(client, peer, ack: :client_individual)
      asking = request(client)
      {%{"id" => replies}, ""} = expect(peer, :subscribe)
      {%{"correlation-id" => id}, "a"} = expect(peer, :send)
      ending = Task.async(fn -> Client.unsubscribe(client, subscription) end)
      {%{"receipt" => receipt}, ""} = expect(peer, :unsubscribe)
      message(peer, mine, "question", [{"correlation-id", id}])
      reply(peer, :receipt, [{"receipt-id", receipt}])
      assert Task.await(ending) == :ok
      answer(peer, replies, id, "answer")
      assert {:ok, %Frame{body: "answer"}} = Task.await(asking)
    end

    test "of a process that has ended is forgotten, and one that waits holds up no close" do
      {client, peer, _listener} = connected()

      {:ok, caller} =
        Task.start(fn -> Client.request(client, "/queue/a", "", timeout: 600_000) end)

      expect(peer, :subscribe)
      expect(peer, :send)
      assert Client.status(client).unconfirmed == 1
      Process.exit(caller, :kill)
      eventually(fn -> Client.status(client).unconfirmed == 0 end)
      asking = request(client, timeout: 600_000)
      expect(peer, :send)
      closing = Task.async(fn -> Client.close(client) end)
      assert {:error, %{reason: :unconfirmed}} = Task.await(asking)
      disconnect(peer)
      assert Task.await(closing) == :ok
    end

    test "that the broker refuses gets the ERROR frame" do
      {client, peer, _listener} = connected()
      asking = request(client)
      expect(peer, :subscribe)
      expect(peer, :send)
      reply(peer, :error, [{"message", "no such queue"}])
      assert {:error, %{reason: :refused, frame: %Frame{}}} = Task.await(asking)
    end

    test "without a connection, or with what cannot be written, is an error at once" do
      client = start_supervised!({Client, url: "stomp://127.0.0.1:1"})
      eventually(fn -> Client.status(client).state == :disconnected end)
      assert {:error, %{reason: :disconnected}} = Client.request(client, "/queue/a", "")

      for opts <- [
            [headers: [{"reply-to", "/queue/a"}]],
            [headers: [{"correlation-id", "1"}]],
            [reply_to: ""],
            [reply_to: "/queue/a\nb:c"],
            [receipt: true]
          ] do
        assert_raise ArgumentError, fn -> Client.request(client, "/queue/a", "", opts) end
      end
    end
  end

  for like <- [nil, :rabbitmq, :activemq] do
    describe "with a broker like #{inspect(like)}" do
      setup do
        like = unquote(like)
        broker = start_supervised!({TestBroker, if(like, do: [like: like], else: [])})
        %{url: "stomp://127.0.0.1:#{TestBroker.port(broker)}", broker: broker}
      end

      test "a consumer replies", %{url: url} do
        start_supervised!({Prices, url: url})
        client = client(url: url)
        assert {:ok, %{body: "a: 12.50"}} = Client.request(client, "/queue/prices", "a")
        assert {:ok, %{body: "twice: 12.50"}} = Client.request(client, "/queue/prices", "twice")

        for n <- 1..100 do
          Task.async(fn ->
            body = "#{n}: 12.50"
            assert {:ok, %{body: ^body}} = Client.request(client, "/queue/prices", "#{n}")
          end)
        end
        |> Task.await_many()

        own = [reply_to: "/queue/mine"]
        assert {:ok, %{body: "b: 12.50"}} = Client.request(client, "/queue/prices", "b", own)
        error = Client.request(client, "/queue/prices", "none", timeout: 50)
        assert {:error, %{reason: :timeout}} = error
      end

      test "a requester that has left is no harm to who replies", %{url: url, broker: broker} do
        client = client(url: url)
        asking = request(client)
        TestBroker.assert_published(broker, "/queue/prices", "a")
        Client.close(client, 50)
        assert {:error, %{reason: :unconfirmed}} = Task.await(asking)

        {:ok, subscription} = Client.subscribe(server = client(url: url), "/queue/prices")
        assert [frame] = receive_messages(subscription, 1)
        result = Client.reply(server, frame, "b")

        if unquote(like) == :rabbitmq,
          do: assert(result == :ok),
          else: assert({:error, %{reason: :refused}} = result)

        # By the specification an ERROR ends the connection.
        if unquote(like), do: assert(Client.ack(server, frame) == :ok)
      end
    end
  end

  test "a message that asks for no reply gets none, and a reply is one in a callback only" do
    broker = start_supervised!(TestBroker)
    client = client(url: "stomp://127.0.0.1:#{TestBroker.port(broker)}")
    frame = %Frame{command: :message, headers: [], body: ""}
    assert {:error, %{reason: :no_reply_to} = error} = Client.reply(client, frame, "")
    empty = %{frame | headers: [{"reply-to", ""}]}
    assert {:error, %{reason: :no_reply_to}} = Client.reply(client, empty, "")
    assert Exception.message(error) =~ "no header reply-to"
    assert_raise ArgumentError, fn -> Barytherium.Consumer.reply(frame, "") end
    headers = [{"reply-to", "/queue/b"}, {"correlation-id", "7"}]
    opts = [headers: [{"a", "b"}]]
    assert Client.reply(client, %{frame | headers: headers}, "c", opts) == :ok
    published = TestBroker.assert_published(broker, "/queue/b", "c")
    assert %{"correlation-id" => "7", "a" => "b"} = Frame.headers_to_map(published.headers)
  end
end
