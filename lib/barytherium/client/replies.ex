defmodule Barytherium.Client.Replies do
  @moduledoc false
  # Requests whose answer is a message (`Barytherium.Client.request/4`): it has the `correlation-id` of the request, and
  # comes to the destination that its `reply-to` names. The functions run in the client, and take and return its data.

  alias Barytherium.Client.{Requests, Session, State, Writing}
  alias Barytherium.Connection.Deadline
  alias Barytherium.Frame
  alias Barytherium.Network.Sender

  @doc "Writes a request. `from` gets `{:ok, reply}`."
  @spec submit(Frame.t(), String.t(), :gen_statem.from(), Deadline.t(), State.t()) :: State.t()
  def submit(frame, reply_to, {pid, _tag} = from, deadline, data) do
    {subscribe, session} = Session.await_replies(data.connection.session, reply_to)
    # Not with the request, which may have to wait for room, or not be written at all.
    if subscribe != [], do: Sender.write(session.sender, subscribe)
    number = data.requests.next
    own = [{"reply-to", reply_to}, {"correlation-id", id(number, data)}]
    monitor = :erlang.monitor(:process, pid, tag: {:requester, number})
    data = put_in(data.connection.session, session)
    frames = [%{frame | headers: own ++ frame.headers}]
    Writing.submit_unconfirmed(frames, {:reply, from, monitor}, deadline, data)
  end

  @doc "The requests that wait for a reply."
  @spec numbers(State.t()) :: [Requests.request()]
  def numbers(%{requests: requests}) do
    for number <- Requests.numbers(requests),
        match?({:reply, _from, _monitor}, Requests.from(requests, number)),
        do: number
  end

  # Nobody else can have it: a late reply may come on another connection, to a destination that lasts.
  defp id(number, data), do: "#{data.token}-#{number}"

  @doc "The request that this message is a reply to, `:late` if nobody waits for it, `:none` if it is no reply."
  @spec request(Frame.t(), State.t()) :: Requests.request() | :late | :none
  def request(frame, %{token: token, requests: requests}) do
    # Some 1.0 servers pad their headers.
    with id when is_binary(id) <- Frame.header(frame, "correlation-id"),
         [^token, number] <- id |> String.trim() |> String.split("-", parts: 2),
         {number, ""} <- Integer.parse(number) do
      if match?({:reply, _from, _monitor}, Requests.from(requests, number)),
        do: number,
        else: :late
    else
      _other -> :none
    end
  end
end
