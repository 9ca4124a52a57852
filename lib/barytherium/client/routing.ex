defmodule Barytherium.Client.Routing do
  @moduledoc false
  # Which process gets the messages of a subscription. The receive loop sends them there (see
  # `Barytherium.Native.put_route/3`); what has no route comes to the client. The functions run in the
  # client, and take its data.

  alias Barytherium.Client.{Acknowledgements, Handlers, Relay, Session, State}
  alias Barytherium.Native

  @doc "To be called before SUBSCRIBE is written, so that every message has its route."
  @spec put(Session.subscription(), State.t()) :: :ok
  def put(subscription, %{handlers: %Handlers{pid: pid} = handlers} = data) when pid != nil do
    # The consumer's process knows by the sender which connection a message is from.
    recipients = {handlers.recipients, handlers.settings.key}
    put(subscription, recipients, data.connection.sender, false, data)
  end

  def put(%{number: number} = subscription, data) do
    with %{target: target} when is_pid(target) <- data.subscriptions[number],
         do: put(subscription, {[target], nil}, {self(), number}, true, data)

    :ok
  end

  defp put(subscription, {recipients, key}, origin, kept?, %{connection: connection}) do
    %{session: session, routes: routes} = connection
    key = if match?([_, _ | _], recipients), do: native(key)
    # Nothing is given back to a topic.
    kept? = kept? and subscription.number not in session.forgotten
    mode = session.modes[Session.id(session, subscription)]
    noted = Acknowledgements.noted(session, mode, kept?, key != nil)

    route = %{
      recipients: recipients,
      key: key,
      origin: origin,
      noted: noted,
      inflate: subscription.inflate,
      feed: subscription.feed
    }

    Native.put_route(routes, Session.keys(session, subscription), route)

    :ok
  end

  defp native({:header, name}), do: name
  defp native(:destination), do: "destination"
  defp native({:body, at, length}), do: {at, length}

  @spec delete(Session.subscription(), State.t()) :: :ok
  def delete(subscription, %{connection: %{session: %Session{} = session, routes: routes}}) do
    for key <- Session.keys(session, subscription), do: Native.delete_route(routes, key)
    :ok
  end

  def delete(_subscription, _data), do: :ok

  @doc """
  Whether somebody waits for a receipt. It may come behind messages that their process does not take, so the
  receive loop reads on then, up to 8 times the usual limit.
  """
  @spec urgent(boolean(), State.t()) :: :ok
  def urgent(urgent, %{connection: %{routes: routes}}) when routes != nil,
    do: Native.set_urgent(routes, urgent)

  def urgent(_urgent, _data), do: :ok

  @doc """
  The process that gets the messages of a subscriber: itself, or if it is on another node, a process
  that sends them on.
  """
  @spec target(pid()) :: pid()
  def target(subscriber) when node(subscriber) == node(), do: subscriber
  def target(subscriber), do: Relay.start(subscriber)

  @doc "The subscription has ended."
  @spec end_target(State.subscription()) :: :ok
  def end_target(%{pid: pid, target: target}) do
    if target != pid, do: Relay.stop(target), else: :ok
  end
end
