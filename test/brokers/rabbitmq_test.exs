defmodule Barytherium.RabbitMQTest do
  use Barytherium.BrokerCase, async: true, broker: Barytherium.Brokers.RabbitMQ

  alias Barytherium.Brokers.RabbitMQ

  defp acknowledge(sender) do
    fn frames ->
      ack = {"id", header(List.last(frames), "ack")}
      Sender.write(sender, [%Frame{command: :ack, headers: [ack]}])
    end
  end

  test "10,000 messages arrive in order, and the queue is empty after their acknowledgement", %{
    broker: broker
  } do
    {sender, _connected} = connected(broker)
    subscribe(sender, "/queue/feed", [{"ack", "client"}])
    Broker.publish!(broker, ["/queue/feed", 10_000])

    messages = frames(10_000, acknowledge(sender))
    assert Enum.map(messages, &header(&1, "number")) == Enum.map(1..10_000, &to_string/1)
    assert List.last(messages).body == "body 10000"

    Sender.write(sender, [%Frame{command: :disconnect, headers: [{"receipt", "bye"}]}])
    receipt("bye")
    assert_disconnect(:closed)
    assert RabbitMQ.messages(broker, "feed") == 0
  end

  test "a wrong password or virtual host is an ERROR frame and then one disconnect", context do
    for header <- [{"passcode", "wrong"}, {"host", "no such"}] do
      connect(context.broker, [header])
      assert [%Frame{command: :error, headers: headers}] = frames()
      assert %{"message" => _reason} = Frame.headers_to_map(headers)

      # RabbitMQ does not always close the connection, although the specification says that it must.
      assert_disconnect(:closed)
    end
  end

  test "a client is told of a wrong password and of a missing virtual host", %{broker: broker} do
    for {userinfo, vhost} <- [{"guest:wrong", ""}, {"guest:guest", "/missing"}] do
      url = "stomp://#{userinfo}@127.0.0.1:#{broker.port}#{vhost}"
      {:ok, client} = Barytherium.Client.start_link(url: url, listener: self())

      assert_receive {:barytherium, :client,
                      {{:connection_failure, %Barytherium.Error{reason: :refused}}, ^client}}

      assert %{error: %{frame: %Frame{}}} = Barytherium.Client.status(client)
      assert Barytherium.Client.close(client) == :ok
    end
  end

  test "negotiated heart-beats keep an idle connection alive", %{broker: broker} do
    {sender, connected} = connected(broker, [{"heart-beat", "1000,1000"}])
    assert header(connected, "heart-beat") == "1000,1000"
    # Longer than the time-out of either side.
    refute_receive {:"$gen_cast", _message}, 5_000
    subscribe(sender, "/queue/idle")
  end
end
