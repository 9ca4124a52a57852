defmodule Barytherium.Client.Replies do
  @moduledoc false
  # Requests whose answer is a message (`Barytherium.Client.request/4`): it has the `correlation-id` of the request, and
  # comes to the destination that its `reply-to` names. The functions run in the client, and take and return its data.

  alias Barytherium.Client.{Requests, Session, State, Writing}
  alias Barytherium.Connection.Deadline
  alias Barytherium.Frame

  @doc "Writes a request. `from` gets `{:ok, reply}`."
  @spec submit(Frame.t(), String.t(), :gen_statem.from(), Deadline.t(), State.t()) :: State.t()
  def submit(frame, reply_to, from, deadline, data) do
    {subscribe, session} = Session.await_replies(data.connection.session, reply_to)
    own = [{"reply-to", reply_to}, {"correlation-id", id(data.requests.next, data)}]
    frames = subscribe ++ [%{frame | headers: own ++ frame.headers}]
    data = put_in(data.connection.session, session)
    Writing.submit_unconfirmed(frames, {:reply, from}, deadline, data)
  end

  # Nobody else can have it: a late reply may come on another connection, to a destination that lasts.
  defp id(number, data), do: "#{data.token}-#{number}"

  @doc "The request that this message is a reply to, `:late` if nobody waits for it, `:none` if it is no reply."
  @spec request(Frame.t(), State.t()) :: Requests.request() | :late | :none
  def request(frame, %{token: token, requests: requests}) do
    with <<^token::binary-size(byte_size(token)), "-", number::binary>> <-
           Frame.header(frame, "correlation-id"),
         {number, ""} <- Integer.parse(number) do
      if match?({:reply, _from}, Requests.from(requests, number)), do: number, else: :late
    else
      _other -> :none
    end
  end
end
